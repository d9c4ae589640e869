"""Rows of gradients and what is computed from them: Gram matrix and weighted sum. Plain tensors; no engine.

A gradient comes as pieces, tensors that one after the other fill this rank's shard; a column is a place in the shard.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from deepspeed.accelerator import get_accelerator

# Columns that are multiplied at a time: 7 fp32 rows of this are 7 MB, which stay in cache, and the fp32 sum over one
# chunk is short enough to be exact to about 1e-6; chunks are summed in fp64.
COLUMNS_AT_A_TIME = 2**18

Columns = tuple[int, int]
"""From and up to."""


class GradientRows:
    """Train rows as they are needed again for the weighted sum, and target rows, which only the Gram matrix needs.

    With some columns selected, the Gram matrix is that of these columns alone, and target rows hold no others; train
    rows hold all, because the model trains on all.
    """

    def __init__(
        self, train_rows: int, target_rows: int, columns: int, dtype: torch.dtype, device: torch.device, on_host: bool
    ) -> None:
        """Allocate; args: most rows of each kind, size of the shard, precision of the rows, where they are computed
        with, and whether they are kept in pinned memory of the host instead."""
        self._device, self._dtype, self._on_host = device, dtype, on_host
        self._ranges: list[Columns] = [(0, columns)]
        self._train = self._allocate(train_rows, columns)
        self._targets = self._allocate(target_rows, columns)

    def _allocate(self, rows: int, columns: int) -> torch.Tensor:
        if not self._on_host:
            return torch.zeros(rows, columns, dtype=self._dtype, device=self._device)
        pinned: torch.Tensor = get_accelerator().pin_memory(torch.zeros(rows, columns, dtype=self._dtype))
        return pinned

    def select(self, ranges: Sequence[Columns]) -> None:
        """Compute Gram matrices from these columns only, ascending and disjoint; frees what target rows held beside."""
        self._ranges = list(ranges)
        self._targets = self._allocate(len(self._targets), sum(end - begin for begin, end in ranges))

    def put_train(self, row: int, pieces: Sequence[torch.Tensor]) -> None:
        """Copy a gradient into a train row."""
        _copy_into(self._train[row], pieces, [(0, self._train.shape[1])])

    def put_target(self, row: int, pieces: Sequence[torch.Tensor]) -> None:
        """Copy a gradient's selected columns into a target row."""
        _copy_into(self._targets[row], pieces, self._ranges)

    def gram(self, train_rows: int, target_rows: int) -> torch.Tensor:
        """G G^T of the first rows of each kind, train rows before targets, [rows, rows], float64, on the device.

        Column chunks are upcast to fp32 one at a time (never the whole matrix) and multiplied without TF32, whose 10
        bits of mantissa would be visible in the weights.
        """
        rows = train_rows + target_rows
        gram = torch.zeros(rows, rows, dtype=torch.float64, device=self._device)
        held = 0
        with full_precision():
            for begin, end in _chunks(self._ranges):
                train = self._compute(self._train[:train_rows, begin:end])
                target = self._compute(self._targets[:target_rows, held : held + end - begin])
                held += end - begin
                gram[:train_rows, :train_rows] += train @ train.T
                if target_rows:
                    gram[:train_rows, train_rows:] += train @ target.T
                    gram[train_rows:, train_rows:] += target @ target.T
        gram[train_rows:, :train_rows] = gram[:train_rows, train_rows:].T
        return gram

    def write_weighted_sum(self, coefficients: torch.Tensor, pieces: Sequence[torch.Tensor]) -> None:
        """Write sum_j coefficients[j] g_j over the first train rows into the pieces.

        Args:
            coefficients: [train rows], any precision; the sum is in fp32.
            pieces: contiguous tensors that fill the shard.
        """
        weights = coefficients.to(self._device, torch.float32)
        offset = 0
        with full_precision():
            for piece in pieces:
                flat = piece.view(-1)
                for begin, end in _chunks([(0, len(flat))]):
                    rows = self._compute(self._train[: len(weights), offset + begin : offset + end])
                    flat[begin:end].copy_(weights @ rows)
                offset += len(flat)

    def _compute(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.to(self._device, non_blocking=True).float()


def column_slices(pieces: Sequence[torch.Tensor], begin: int, end: int) -> Iterator[torch.Tensor]:
    """Columns `begin` up to `end` of a gradient, as views of its pieces."""
    offset = 0
    for piece in pieces:
        low, high = max(begin - offset, 0), min(end - offset, piece.numel())
        if low < high:
            yield piece.reshape(-1)[low:high]
        offset += piece.numel()


def squared_norm(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of squares over all pieces, float64: chunks in fp32, their sum in fp64."""
    total = torch.zeros((), dtype=torch.float64, device=pieces[0].device)
    for piece in pieces:
        for begin, end in _chunks([(0, piece.numel())]):
            part = piece.reshape(-1)[begin:end].float()
            total += part @ part
    return total


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products in fp32 as it is, without TF32, whatever the program has set."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _chunks(ranges: Sequence[Columns]) -> Iterator[Columns]:
    """The ranges in pieces of COLUMNS_AT_A_TIME."""
    for begin, end in ranges:
        for start in range(begin, end, COLUMNS_AT_A_TIME):
            yield start, min(start + COLUMNS_AT_A_TIME, end)


def _copy_into(row: torch.Tensor, pieces: Sequence[torch.Tensor], ranges: Sequence[Columns]) -> None:
    """Copy columns of a gradient, one range after the other, into a row that they fill."""
    offset = 0
    for begin, end in ranges:
        for part in column_slices(pieces, begin, end):
            row[offset : offset + part.numel()].copy_(part, non_blocking=True)
            offset += part.numel()
