"""What the ranks of an evaluation tell each other; alone, nothing is sent."""

from typing import Any, TypeVar

import torch.distributed

Value = TypeVar("Value")


def from_rank_0(value: Value, world_size: int) -> Value:
    """Rank 0's value, on every rank."""
    if world_size == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def from_all_ranks(value: Value, world_size: int) -> list[Value]:
    """Every rank's value, in the order of the ranks, on every rank."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values
