"""DoGE's mathematics (arXiv 2310.15393): Gram matrix -> scores -> mirror descent -> running mean.

Everything follows from the Gram matrix A = G G^T of the step's gradients, [rows, rows]. Its first k rows belong to the
train domains, in order; then come target domains that are not trained on, or the row of the even mix. Tensors here are
small, float64 and on the CPU, so that every rank computes the same numbers from the same reduced Gram matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from doge_ds.config import DogeConfig

# A weight of 0 would stay 0 for ever under the multiplicative update; this is the smallest normal float64.
SMALLEST_WEIGHT = 2.0**-1022


@dataclass(frozen=True)
class Proposal:
    """What one Gram matrix says; `DomainWeights.accept` makes it count.

    Attributes:
        weights: new domain weights, [k].
        scores: generalization estimates W after normalisation and clipping, [k].
        coefficients: what each train row is multiplied with in the model's gradient, [k]; NaN where the Gram matrix is
            not finite, so that DeepSpeed skips the whole step and model and weights stay together.
        gradient_norms: norm of every row before clipping, [rows].
    """

    weights: torch.Tensor
    scores: torch.Tensor
    coefficients: torch.Tensor
    gradient_norms: torch.Tensor


class DomainWeights:
    """Weights over the train domains, their sum over the accepted steps, and the count of these."""

    def __init__(self, train_domains: Sequence[str], row_names: Sequence[str], doge: DogeConfig) -> None:
        """Uniform weights at the start.

        Args:
            train_domains: names of the k train domains.
            row_names: names of the Gram matrix' rows; the first k are the train domains.
            doge: target, score options and mirror descent.

        Raises:
            ValueError: the rows do not start with the train domains, or a target has no row.
        """
        if list(row_names[: len(train_domains)]) != list(train_domains):
            raise ValueError(f"rows {list(row_names)} do not start with the train domains {list(train_domains)}")
        self.train_domains = list(train_domains)
        self.doge = doge
        self._target = target_matrix(train_domains, row_names, doge)
        self.weights = torch.full((len(train_domains),), 1 / len(train_domains), dtype=torch.float64)
        self._sum = torch.zeros_like(self.weights)
        self.count = 0

    def propose(self, gram: torch.Tensor, learning_rate: float) -> Proposal:
        """Scores and new weights from one step's Gram matrix (Algorithm 1).

        Args:
            gram: inner products of the rows' gradients, [rows, rows], float64.
            learning_rate: eta_t, the rate that the model's step uses, read before it; unused where `step_size` is set.
        """
        norms = gram.diagonal().clamp(min=0).sqrt()
        if not bool(torch.isfinite(gram).all()):
            nothing = torch.full_like(self.weights, torch.nan)
            return Proposal(weights=self.weights, scores=nothing, coefficients=nothing, gradient_norms=norms)
        factors = clip_factors(norms, self.doge.clip_domain_gradients)
        scores = generalization_scores(gram * factors.outer(factors), self._target, self.doge)
        step_size = learning_rate if self.doge.step_size is None else self.doge.step_size
        weights = mirror_descent(self.weights, scores, step_size, self.doge)
        coefficients = weights * factors[: len(weights)]
        return Proposal(weights=weights, scores=scores, coefficients=coefficients, gradient_norms=norms)

    def accept(self, proposal: Proposal) -> None:
        """Take the proposal's weights and count them in the mean; only after the model's step was applied."""
        self.weights = proposal.weights
        self._sum = self._sum + proposal.weights
        self.count += 1

    def mean(self) -> dict[str, float]:
        """Plain mean of the weights over the accepted steps, by name; before the first of them the start's weights."""
        mean = self._sum / self.count if self.count else self.weights
        return dict(zip(self.train_domains, mean.tolist(), strict=True))

    def current(self) -> dict[str, float]:
        """The weights of the latest accepted step, by name."""
        return dict(zip(self.train_domains, self.weights.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, keyed by name; floats survive JSON and pickle exactly."""
        total = dict(zip(self.train_domains, self._sum.tolist(), strict=True))
        return {"weights": self.current(), "sum": total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state. Raises ValueError where it belongs to other domains."""
        if set(state["weights"]) != set(self.train_domains):
            raise ValueError(f"state of {sorted(state['weights'])} does not fit {sorted(self.train_domains)}")
        self.weights = torch.tensor([state["weights"][name] for name in self.train_domains], dtype=torch.float64)
        self._sum = torch.tensor([state["sum"][name] for name in self.train_domains], dtype=torch.float64)
        self.count = int(state["count"])


def target_matrix(train_domains: Sequence[str], row_names: Sequence[str], doge: DogeConfig) -> torch.Tensor:
    """T, [k, rows]: T[j, i] = 1 where row i counts as a target of train domain j, so that W_j = sum_i T[j, i] A[j, i].

    "all" (ICML version): every train domain; "others" (arXiv v1): without i = j; "mix": the last row; a list
    (out-of-domain): the rows of these names.
    """
    k = len(train_domains)
    matrix = torch.zeros(k, len(row_names), dtype=torch.float64)
    if doge.target in ("all", "others"):
        matrix[:, :k] = 1
        if doge.target == "others":
            matrix[:, :k].fill_diagonal_(0)
    elif doge.target == "mix":
        matrix[:, -1] = 1
    else:
        matrix[:, [list(row_names).index(name) for name in doge.target]] = 1
    return matrix


def clip_factors(norms: torch.Tensor, largest: float | None) -> torch.Tensor:
    """What each row is multiplied with so that its norm is at most `largest`, [rows]; ones without a limit."""
    if largest is None:
        return torch.ones_like(norms)
    return torch.where(norms > largest, largest / norms, torch.ones_like(norms))


def generalization_scores(gram: torch.Tensor, target: torch.Tensor, doge: DogeConfig) -> torch.Tensor:
    """W, [k], from the Gram matrix of (clipped) gradients, [rows, rows], and the target matrix, [k, rows].

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
    return scores if doge.clip is None else scores.clamp(*doge.clip)


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
