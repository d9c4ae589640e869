"""Weights over the train domains, whatever the method that learns them: state, running mean, checkpoints.

A method is one module with a subclass of `DomainWeights` whose `propose` says what one step's measurements mean for the
weights and for the model's gradient: `doge.py`, `doremi.py`. Tensors here are small, float64 and on the CPU, so that
every rank computes the same numbers from the same reduced measurements.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# A weight of 0 would stay 0 for ever under the multiplicative update; this is the smallest normal float64.
SMALLEST_WEIGHT = 2.0**-1022


class Measurements(Protocol):
    """What a step that updates the weights has measured, summed over ranks; `DomainGradients.reduce` gives it."""

    @property
    def rows(self) -> Sequence[str]:
        """The step's rows, train domains first, in the order of the run's rows."""

    @property
    def gram(self) -> torch.Tensor:
        """Inner products of the rows' gradients, [rows, rows], float64; of the selected tensors' where the scores come
        from these only."""

    @property
    def squared_norms(self) -> torch.Tensor | None:
        """Of the rows' whole gradients, [rows]; None where they are the diagonal of `gram`."""

    @property
    def excess_losses(self) -> torch.Tensor | None:
        """Mean over each row's tokens of max(loss - loss of the reference model, 0), [rows]; None without one."""


@dataclass(frozen=True)
class Proposal:
    """What one step's measurements say; `DomainWeights.accept` makes it count.

    Attributes:
        weights: new domain weights, [k].
        scores: what moves the weights, [k]: DoGE's generalization estimates W after normalisation and clipping, or
            DoReMi's excess losses; of domains that the step does not have, what stands for them.
        raw_scores: the same before clipping, [k]; NaN for domains that the step does not have.
        present: which domains the step has, [k], bool.
        coefficients: what each train row is multiplied with in the model's gradient, [train rows]; NaN where something
            measured is not finite, so that DeepSpeed skips the whole step and model and weights stay together.
        gradient_norms: norm of every row before clipping, [rows].
    """

    weights: torch.Tensor
    scores: torch.Tensor
    raw_scores: torch.Tensor
    present: torch.Tensor
    coefficients: torch.Tensor
    gradient_norms: torch.Tensor


class DomainWeights(ABC):
    """Weights over the train domains, their sum over the accepted steps, and the count of these."""

    def __init__(self, train_domains: Sequence[str]) -> None:
        """Uniform weights at the start. Args: names of the k train domains."""
        self.train_domains = list(train_domains)
        self.weights = torch.full((len(train_domains),), 1 / len(train_domains), dtype=torch.float64)
        self._sum = torch.zeros_like(self.weights)
        self.count = 0

    @abstractmethod
    def propose(self, measured: Measurements, learning_rate: float) -> Proposal:
        """New weights from one step's measurements; changes nothing.

        Args:
            measured: of the step.
            learning_rate: eta_t, the rate that the model's step uses, read before it.
        """

    def coefficients(self, rows: Sequence[str]) -> list[float]:
        """What each train row is multiplied with in the model's gradient where the weights stay as they are.

        Between updates no domain's gradient is known by itself, so none is clipped; that of their sum is.
        """
        chosen = [self.train_domains.index(name) for name in rows if name in self.train_domains]
        return (self.weights[chosen] * (len(self.weights) / len(chosen))).tolist()

    def accept(self, proposal: Proposal) -> None:
        """Take the proposal's weights and count them in the mean; only after the model's step was applied."""
        self.weights = proposal.weights
        self._sum = self._sum + proposal.weights
        self.count += 1

    def mean(self) -> dict[str, float]:
        """Plain mean of the weights over the accepted steps, by name; before the first of them the start's weights."""
        mean = self._sum / self.count if self.count else self.weights
        return self._by_name(mean.tolist())

    def current(self) -> dict[str, float]:
        """The weights of the latest accepted step, by name."""
        return self._by_name(self.weights.tolist())

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, keyed by name; floats survive JSON and pickle exactly."""
        return {"weights": self.current(), "sum": self._by_name(self._sum.tolist()), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state. Raises ValueError where it belongs to other domains."""
        if set(state["weights"]) != set(self.train_domains):
            raise ValueError(f"state of {sorted(state['weights'])} does not fit {sorted(self.train_domains)}")
        self.weights = self._in_order(state["weights"])
        self._sum = self._in_order(state["sum"])
        self.count = int(state["count"])

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.train_domains, values, strict=True))

    def _in_order(self, values: dict[str, Any]) -> torch.Tensor:
        numbers = [math.nan if values[name] is None else values[name] for name in self.train_domains]
        return torch.tensor(numbers, dtype=torch.float64)


def exponentiated_gradient(weights: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """log a + move, and softmax, [k] -> [k]: the step on the simplex that both papers take."""
    return torch.softmax(weights.clamp(min=SMALLEST_WEIGHT).log() + move, dim=0)


def smoothed(weights: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(1 - c) a + c / k, [k] -> [k]."""
    return (1 - smoothing) * weights + smoothing / len(weights)
