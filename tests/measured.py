"""What a step has measured, as `DomainGradients.reduce` gives it, from numbers made up for a test."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Measured:
    gram: torch.Tensor
    rows: Sequence[str]
    squared_norms: torch.Tensor | None = None
    excess_losses: torch.Tensor | None = None
