"""DoGE's mathematics (arXiv 2310.15393): Gram matrix -> scores -> mirror descent -> running mean.

Everything follows from the Gram matrix A = G G^T of the step's gradients, [rows, rows]. Its first rows belong to the
train domains, in order, all k of them or n that the step has; then come target domains that are not trained on, or the
row of the even mix. Tensors here are small, float64 and on the CPU, so that every rank computes the same numbers from
the same reduced Gram matrix.

Where a step has n < k train domains (ours, not the paper's), three rules replace what is not there:
 * a sum over train domains (`all`, `others`) is estimated from the n - 1 others that are there, times (k-1) / (n-1);
 * an absent domain's score is m + d^u (w - m): w its last score, m the mean score of the step's domains, u the updates
   since, d `absent_score_decay`; one that never came yet has m. No gradient is kept for it;
 * the model's gradient is sum_j a_j g_j over the step's domains, times k / n: over a block of steps, in which every
   domain comes as often, its mean is that of full steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from doge_ds.config_sections import DogeConfig

# A weight of 0 would stay 0 for ever under the multiplicative update; this is the smallest normal float64.
SMALLEST_WEIGHT = 2.0**-1022


@dataclass(frozen=True)
class Proposal:
    """What one Gram matrix says; `DomainWeights.accept` makes it count.

    Attributes:
        weights: new domain weights, [k].
        scores: generalization estimates W after normalisation and clipping, [k]; of domains that the step does not
            have, what stands for them.
        raw_scores: the same before clipping, [k]; NaN for domains that the step does not have.
        present: which domains the step has, [k], bool.
        coefficients: what each train row is multiplied with in the model's gradient, [train rows]; NaN where the Gram
            matrix is not finite, so that DeepSpeed skips the whole step and model and weights stay together.
        gradient_norms: norm of every row before clipping, [rows].
    """

    weights: torch.Tensor
    scores: torch.Tensor
    raw_scores: torch.Tensor
    present: torch.Tensor
    coefficients: torch.Tensor
    gradient_norms: torch.Tensor


class DomainWeights:
    """Weights over the train domains, their sum over the accepted steps, and the count of these."""

    def __init__(self, train_domains: Sequence[str], row_names: Sequence[str], doge: DogeConfig) -> None:
        """Uniform weights at the start.

        Args:
            train_domains: names of the k train domains.
            row_names: names of the rows that a step may have; the first k are the train domains.
            doge: target, score options and mirror descent.

        Raises:
            ValueError: the rows do not start with the train domains, or a target has no row.
        """
        if list(row_names[: len(train_domains)]) != list(train_domains):
            raise ValueError(f"rows {list(row_names)} do not start with the train domains {list(train_domains)}")
        self.train_domains = list(train_domains)
        self.doge = doge
        self._number = {name: number for number, name in enumerate(row_names)}
        target_matrix(train_domains, row_names, doge, len(train_domains))  # a target without a row is found now
        self.weights = torch.full((len(train_domains),), 1 / len(train_domains), dtype=torch.float64)
        self._sum = torch.zeros_like(self.weights)
        self.count = 0
        self._last_scores = torch.full_like(self.weights, torch.nan)
        self._updates_since = torch.zeros_like(self.weights)

    def propose(
        self, gram: torch.Tensor, rows: Sequence[str], learning_rate: float, squared_norms: torch.Tensor | None = None
    ) -> Proposal:
        """Scores and new weights from one step's Gram matrix (Algorithm 1).

        Args:
            gram: inner products of the rows' gradients, [rows, rows], float64; of the selected tensors' where the
                scores come from these only.
            rows: the step's rows, train domains first, in the order of `row_names`.
            learning_rate: eta_t, the rate that the model's step uses, read before it; unused where `step_size` is set.
            squared_norms: of the rows' whole gradients, [rows], for clipping them; by default the matrix' diagonal.
        """
        k = len(self.train_domains)
        norms = (gram.diagonal() if squared_norms is None else squared_norms).clamp(min=0).sqrt()
        train = [name for name in rows if self._number[name] < k]
        chosen = torch.tensor([self._number[name] for name in train])
        present = torch.zeros(k, dtype=torch.bool).index_fill_(0, chosen, True)
        nothing = torch.full_like(self.weights, torch.nan)
        if not bool(torch.isfinite(gram).all() and torch.isfinite(norms).all()):
            return Proposal(self.weights, nothing, nothing, present, nothing[: len(train)], norms)
        factors = clip_factors(norms, self.doge.clip_domain_gradients)
        target = target_matrix(train, rows, self.doge, k)
        raw = nothing.index_copy(0, chosen, generalization_scores(gram * factors.outer(factors), target, self.doge))
        scores = self._with_absent(raw if self.doge.clip is None else raw.clamp(*self.doge.clip), present)
        step_size = learning_rate if self.doge.step_size is None else self.doge.step_size
        weights = mirror_descent(self.weights, scores, step_size, self.doge)
        coefficients = weights[chosen] * factors[: len(train)] * (k / len(train))
        return Proposal(weights, scores, raw, present, coefficients, norms)

    def _with_absent(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """The scores, [k], with something in the place of absent domains' NaN; the rule stands at the file's head."""
        mean = scores[present].mean()
        drawn = mean + self.doge.absent_score_decay ** (self._updates_since + 1) * (self._last_scores - mean)
        return torch.where(present, scores, torch.where(drawn.isnan(), mean, drawn))

    def coefficients(self, rows: Sequence[str]) -> list[float]:
        """What each train row is multiplied with in the model's gradient where the weights stay as they are.

        Between updates no domain's gradient is known by itself, so none is clipped; that of their sum is.
        """
        k = len(self.train_domains)
        chosen = [self._number[name] for name in rows if self._number[name] < k]
        return (self.weights[chosen] * (k / len(chosen))).tolist()

    def accept(self, proposal: Proposal) -> None:
        """Take the proposal's weights and count them in the mean; only after the model's step was applied."""
        self.weights = proposal.weights
        self._sum = self._sum + proposal.weights
        self.count += 1
        self._last_scores = torch.where(proposal.present, proposal.scores, self._last_scores)
        self._updates_since = torch.where(proposal.present, 0.0, self._updates_since + 1)

    def mean(self) -> dict[str, float]:
        """Plain mean of the weights over the accepted steps, by name; before the first of them the start's weights."""
        mean = self._sum / self.count if self.count else self.weights
        return self._by_name(mean.tolist())

    def current(self) -> dict[str, float]:
        """The weights of the latest accepted step, by name."""
        return self._by_name(self.weights.tolist())

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, keyed by name; floats survive JSON and pickle exactly."""
        scores = [None if math.isnan(score) else score for score in self._last_scores.tolist()]
        return {
            "weights": self.current(),
            "sum": self._by_name(self._sum.tolist()),
            "count": self.count,
            "last_scores": self._by_name(scores),
            "updates_since": self._by_name(self._updates_since.tolist()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state. Raises ValueError where it belongs to other domains."""
        if set(state["weights"]) != set(self.train_domains):
            raise ValueError(f"state of {sorted(state['weights'])} does not fit {sorted(self.train_domains)}")
        self.weights = self._in_order(state["weights"])
        self._sum = self._in_order(state["sum"])
        self._last_scores = self._in_order(state["last_scores"])
        self._updates_since = self._in_order(state["updates_since"])
        self.count = int(state["count"])

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.train_domains, values, strict=True))

    def _in_order(self, values: dict[str, Any]) -> torch.Tensor:
        numbers = [math.nan if values[name] is None else values[name] for name in self.train_domains]
        return torch.tensor(numbers, dtype=torch.float64)


def target_matrix(train: Sequence[str], rows: Sequence[str], doge: DogeConfig, k: int) -> torch.Tensor:
    """T, [train rows, rows]: W_j = sum_i T[j, i] A[j, i] over the rows i that count as targets of train domain j.

    "all" (ICML version): every train domain; "others" (arXiv v1): without i = j; "mix": the last row; a list
    (out-of-domain): the rows of these names. Where the step has n of k train domains, the n - 1 others stand for k - 1.
    """
    n = len(train)
    matrix = torch.zeros(n, len(rows), dtype=torch.float64)
    if doge.target in ("all", "others"):
        matrix[:, :n] = (k - 1) / (n - 1) if n < k else 1
        matrix[:, :n].fill_diagonal_(1 if doge.target == "all" else 0)
    elif doge.target == "mix":
        matrix[:, -1] = 1
    else:
        matrix[:, [list(rows).index(name) for name in doge.target]] = 1
    return matrix


def clip_factors(norms: torch.Tensor, largest: float | None) -> torch.Tensor:
    """What each row is multiplied with so that its norm is at most `largest`, [rows]; ones without a limit."""
    if largest is None:
        return torch.ones_like(norms)
    return torch.where(norms > largest, largest / norms, torch.ones_like(norms))


def generalization_scores(gram: torch.Tensor, target: torch.Tensor, doge: DogeConfig) -> torch.Tensor:
    """W before clipping, [k], from the Gram matrix of (clipped) gradients, [rows, rows], and target matrix, [k, rows].

    `mean_gradient_norm` divides by the mean norm of the train rows, as the authors' code does; `cosine` scores
    directions alone: every inner product is divided by both norms. A gradient of norm 0 scores 0.
    """
    k = len(target)
    norms = gram.diagonal().clamp(min=0).sqrt()
    if doge.normalize == "cosine":
        lengths = torch.where(norms > 0, norms, torch.ones_like(norms))
        gram = gram / lengths.outer(lengths)
    scores = (target * gram[:k]).sum(dim=1)
    if doge.normalize == "mean_gradient_norm":
        mean_norm = norms[:k].mean()
        scores = scores / torch.where(mean_norm > 0, mean_norm, torch.ones_like(mean_norm))
    return scores


def mirror_descent(weights: torch.Tensor, scores: torch.Tensor, step_size: float, doge: DogeConfig) -> torch.Tensor:
    """One step on the simplex, [k] -> [k]: log a + eta W / mu and softmax (kl), or a projection (euclidean)."""
    move = step_size * scores / doge.mu
    if doge.divergence == "kl":
        moved = torch.softmax(weights.clamp(min=SMALLEST_WEIGHT).log() + move, dim=0)
    else:
        moved = project_onto_simplex(weights + move)
    return (1 - doge.smoothing) * moved + doge.smoothing / len(weights)


def project_onto_simplex(point: torch.Tensor) -> torch.Tensor:
    """The nearest point of the probability simplex, [k] -> [k] (Held, Wolfe and Crowder 1974)."""
    descending = point.sort(descending=True).values
    surplus = (descending.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype)
    support = int((descending > surplus).sum())
    return (point - surplus[support - 1]).clamp(min=0)
