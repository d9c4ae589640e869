"""DoReMi's mathematics (arXiv 2305.10429, Algorithm 1): excess losses -> exponentiated gradient -> running mean.

The proxy is trained by group distributionally robust optimisation: weights grow on the domains in which its loss is
furthest above a reference model's, so that it learns where there is most left to learn. In every step

    lambda_j = mean over domain j's tokens of max(loss - loss of the reference model, 0)    (clipped at each token)
    a_j     <- a_j exp(step_size lambda_j), normalised, then (1 - c) a + c / k              (smoothed towards uniform)
    model   <- its optimizer's step on the gradient of sum_j a_j (mean token loss of domain j), with the new a

and the result is the plain mean of all a. The reference's loss in the model's objective has no gradient. Every domain
has the same number of sequences in every step, as the paper draws them; losses and lambda are means over tokens.
"""

from collections.abc import Sequence

import torch

from doge_ds.config_sections import DoremiConfig
from doge_ds.reweight.domain_weights import DomainWeights, Measurements, Proposal, exponentiated_gradient, smoothed


class DoremiWeights(DomainWeights):
    """DoReMi: excess losses over a reference model move the weights."""

    def __init__(self, train_domains: Sequence[str], doremi: DoremiConfig) -> None:
        """Uniform weights at the start. Args: names of the k train domains; step size and smoothing."""
        super().__init__(train_domains)
        self.doremi = doremi

    def propose(self, measured: Measurements, learning_rate: float) -> Proposal:
        """New weights from one step's excess losses; `learning_rate` is unused, the step has its own size.

        Raises:
            ValueError: nothing was measured against a reference model, or the rows are not the train domains.
        """
        excess = measured.excess_losses
        if excess is None or list(measured.rows) != self.train_domains:
            raise ValueError(f"rows {list(measured.rows)} with excess losses {excess} are no step of DoReMi")
        norms = measured.gram.diagonal().clamp(min=0).sqrt()
        present = torch.ones(len(excess), dtype=torch.bool)
        if not bool(torch.isfinite(excess).all() and torch.isfinite(norms).all()):
            nothing = torch.full_like(excess, torch.nan)
            return Proposal(self.weights, nothing, nothing, present, nothing, norms)
        moved = exponentiated_gradient(self.weights, self.doremi.step_size * excess)
        weights = smoothed(moved, self.doremi.smoothing)
        return Proposal(weights, excess, excess, present, weights, norms)
