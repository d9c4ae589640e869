"""DoGE's mathematics (arXiv 2310.15393): Gram matrix -> scores -> mirror descent -> running mean.

Everything follows from the Gram matrix A = G G^T of the step's gradients, [rows, rows]. Its first rows belong to the
train domains, in order, all k of them or n that the step has; then come target domains that are not trained on, or the
row of the even mix.

Where a step has n < k train domains (ours, not the paper's), three rules replace what is not there:
 * a sum over train domains (`all`, `others`) is estimated from the n - 1 others that are there, times (k-1) / (n-1);
 * an absent domain's score is m + d^u (w - m): w its last score, m the mean score of the step's domains, u the updates
   since, d `absent_score_decay`; one that never came yet has m. No gradient is kept for it;
 * the model's gradient is sum_j a_j g_j over the step's domains, times k / n: over a block of steps, in which every
   domain comes as often, its mean is that of full steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from doge_ds.config_sections import DogeConfig
from doge_ds.reweight.domain_weights import (
    DomainWeights,
    Measurements,
    Proposal,
    exponentiated_gradient,
    smoothed,
)


class DogeWeights(DomainWeights):
    """DoGE: the gradients' alignment with the target's moves the weights."""

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
        super().__init__(train_domains)
        self.doge = doge
        self._number = {name: number for number, name in enumerate(row_names)}
        target_matrix(train_domains, row_names, doge, len(train_domains))  # a target without a row is found now
        self._last_scores = torch.full_like(self.weights, torch.nan)
        self._updates_since = torch.zeros_like(self.weights)

    def propose(self, measured: Measurements, learning_rate: float) -> Proposal:
        """Scores and new weights from one step's Gram matrix (Algorithm 1). `learning_rate` is unused where
        `step_size` is set."""
        k, gram, rows = len(self.train_domains), measured.gram, measured.rows
        squared_norms = gram.diagonal() if measured.squared_norms is None else measured.squared_norms
        norms = squared_norms.clamp(min=0).sqrt()
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

    def accept(self, proposal: Proposal) -> None:
        """Take the proposal's weights, count them in the mean, and remember the scores for when a domain is absent."""
        super().accept(proposal)
        self._last_scores = torch.where(proposal.present, proposal.scores, self._last_scores)
        self._updates_since = torch.where(proposal.present, 0.0, self._updates_since + 1)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, keyed by name."""
        scores = [None if math.isnan(score) else score for score in self._last_scores.tolist()]
        return {
            **super().state_dict(),
            "last_scores": self._by_name(scores),
            "updates_since": self._by_name(self._updates_since.tolist()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state. Raises ValueError where it belongs to other domains."""
        super().load_state_dict(state)
        self._last_scores = self._in_order(state["last_scores"])
        self._updates_since = self._in_order(state["updates_since"])


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
    is_kl = doge.divergence == "kl"
    moved = exponentiated_gradient(weights, move) if is_kl else project_onto_simplex(weights + move)
    return smoothed(moved, doge.smoothing)


def project_onto_simplex(point: torch.Tensor) -> torch.Tensor:
    """The nearest point of the probability simplex, [k] -> [k] (Held, Wolfe and Crowder 1974)."""
    descending = point.sort(descending=True).values
    surplus = (descending.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype)
    support = int((descending > surplus).sum())
    return (point - surplus[support - 1]).clamp(min=0)
