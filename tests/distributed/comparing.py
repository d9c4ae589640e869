"""What two runs computed, side by side."""

import json
from pathlib import Path

import torch


def metrics_of(run: Path) -> list[dict]:
    """All lines, without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "tokens_per_second_per_device", "tflops_per_device")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def count_equal_tensors(one: object, other: object) -> int:
    """Tensors with elements in a nested structure, all of them equal to the other's."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
        return int(one.numel() > 1)
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        return sum(count_equal_tensors(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        assert len(one) == len(other)
        return sum(count_equal_tensors(*pair) for pair in zip(one, other, strict=True))
    return 0
