"""The ZeRO-2 hook: this rank's shard of every domain's gradient, their Gram matrix, and the weighted sum handed back.

ZeRO-2 leaves on each rank one shard of the gradient, averaged over ranks. <g_i, g_j> is the sum over ranks of the
shards' products, so one all-reduce of rows^2 + rows + 1 numbers a step is all the communication that DoGE adds to the
backward passes. These reduce their gradients once a row: rows times what plain data parallelism moves in a step, and
what ZeRO-2 moves anyway with as many gradient accumulation steps.

It reads `optimizer.averaged_gradients`, which DeepSpeed does not promise: setup.py pins the versions, and the size of
every shard is checked at every collection.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from doge_ds.errors import ConfigError
from doge_ds.training.launch import seed_everything
from doge_ds.training.model import sequence_losses

# Columns that are multiplied at a time: 7 fp32 rows of this are 7 MB, which stay in cache, and the fp32 sum over one
# chunk is short enough to be exact to about 1e-6; chunks are summed in fp64.
COLUMNS_AT_A_TIME = 2**18


@dataclass(frozen=True)
class StepSummary:
    """What all ranks know after the one all-reduce.

    Attributes:
        gram: inner products of the rows' gradients, [rows, rows], float64, CPU; loss scale divided out.
        losses: mean token loss of each row, [rows], float64, CPU.
        stop: some rank was asked to stop.
    """

    gram: torch.Tensor
    losses: torch.Tensor
    stop: bool


class DomainGradients:
    """The gradients of one step, one row per domain, sharded as ZeRO-2 shards them."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, row_names: Sequence[str], train_rows: int, seed: int) -> None:
        """Allocate the rows.

        Args:
            engine: ZeRO-2, gradient_accumulation_steps 1, no optimizer offload.
            row_names: one gradient each; the first `train_rows` make up the model's gradient.
            seed: of dropout.

        Raises:
            ConfigError: the engine is not one that this hook understands.
        """
        _refuse_unknown_engines(engine)
        self._engine = engine
        self._optimizer = engine.optimizer
        self._row_names = list(row_names)
        self._train_rows = train_rows
        self._seed = seed
        self._sizes = [int(size) for size in self._optimizer.partition_size]
        dtype = self._optimizer.gradient_accumulation_dtype
        self._rows = torch.zeros(len(row_names), sum(self._sizes), dtype=dtype, device=engine.device)
        self._losses = torch.zeros(len(row_names), dtype=torch.float64, device=engine.device)

    def collect(self, step: int, row_name: str, micro_batches: Sequence[torch.Tensor]) -> None:
        """Backward passes of one domain; its averaged gradient becomes a row.

        Args:
            step: for the seed of dropout.
            row_name: whose gradient this is.
            micro_batches: this rank's token ids, each [micro-batch, sequence_length], int64, on any device.
        """
        row = self._row_names.index(row_name)
        engine = self._engine
        # A second backward adds to a preflattened buffer unless its entry is None.
        self._optimizer.averaged_gradients.clear()
        self._losses[row] = 0
        for number, tokens in enumerate(micro_batches):
            seed_everything(self._seed, step, row_name, number, engine.global_rank)
            engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            loss = sequence_losses(engine, tokens.to(engine.device, non_blocking=True)).mean() / len(micro_batches)
            engine.backward(loss)
            self._losses[row] += loss.detach()
        offset = 0
        for tensors, size in zip(self._shards(), self._sizes, strict=True):
            _copy_into(self._rows[row, offset : offset + size], tensors)
            offset += size

    def reduce(self, stop: bool) -> StepSummary:
        """Gram matrix and losses over all ranks: the one all-reduce (collective).

        Args:
            stop: this rank was asked to stop; travels along so that all ranks stop after the same step.
        """
        engine = self._engine
        rows, world_size = len(self._row_names), engine.world_size
        gram = gram_matrix(self._rows) / float(self._optimizer.loss_scale) ** 2
        flags = torch.tensor([float(stop)], dtype=torch.float64, device=engine.device)
        packed = torch.cat([gram.flatten(), self._losses / world_size, flags])
        deepspeed.comm.all_reduce(packed)
        packed = packed.cpu()
        return StepSummary(
            gram=packed[: rows * rows].view(rows, rows), losses=packed[rows * rows : -1], stop=bool(packed[-1] > 0)
        )

    def apply(self, coefficients: torch.Tensor) -> None:
        """Write sum_j coefficients[j] g_j over the train rows into the tensors that `engine.step()` reads.

        Args:
            coefficients: [train rows], float64; NaN makes DeepSpeed skip the step.
        """
        weights = coefficients.to(self._rows.device, torch.float32)
        offset = 0
        for tensor in (tensor for tensors in self._shards() for tensor in tensors):
            flat = tensor.view(-1)
            for begin in range(0, len(flat), COLUMNS_AT_A_TIME):
                part = flat[begin : begin + COLUMNS_AT_A_TIME]
                rows = self._rows[: self._train_rows, offset : offset + len(part)]
                with full_precision():
                    part.copy_(weights @ rows.float())
                offset += len(part)

    def _shards(self) -> Iterator[list[torch.Tensor]]:
        """This rank's averaged gradient in DeepSpeed's own tensors, group by group, padding included.

        Two forms: a list of tensors that together fill the shard, or a buffer group that also has the flat shard.
        """
        for group, size in enumerate(self._sizes):
            tensors = self._optimizer.averaged_gradients[group]
            flat = getattr(tensors, "flat_partition", None)
            found = [flat] if flat is not None else list(tensors)
            if (total := sum(tensor.numel() for tensor in found)) != size:
                raise RuntimeError(
                    f"DeepSpeed's gradient shard of group {group} has {total} elements instead of {size}: "
                    f"deepspeed {deepspeed.__version__} is not one that doge_ds knows"
                )
            yield found


def gram_matrix(rows: torch.Tensor) -> torch.Tensor:
    """G G^T of this rank's shards, [rows, columns] -> [rows, rows], float64.

    Column chunks are upcast to fp32 one at a time (never the whole matrix) and multiplied without TF32, whose 10 bits
    of mantissa would be visible in the weights.
    """
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    with full_precision():
        for begin in range(0, rows.shape[1], COLUMNS_AT_A_TIME):
            chunk = rows[:, begin : begin + COLUMNS_AT_A_TIME].float()
            gram += chunk @ chunk.T
    return gram


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products in fp32 as it is, without TF32, whatever the program has set."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _copy_into(row: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy tensors one after the other into a row that they fill."""
    offset = 0
    for tensor in tensors:
        row[offset : offset + tensor.numel()].copy_(tensor.reshape(-1))
        offset += tensor.numel()


def _refuse_unknown_engines(engine: Any) -> None:
    """Only what this hook was tested with."""
    if engine.zero_optimization_stage() != 2:
        raise ConfigError("deepspeed.zero_optimization.stage", f"is {engine.zero_optimization_stage()}", "DoGE needs 2")
    if engine.gradient_accumulation_steps() != 1:
        raise ConfigError("deepspeed.gradient_accumulation_steps", "must stay 1 in the proxy", "delete it")
    needed = ("averaged_gradients", "partition_size", "gradient_accumulation_dtype", "loss_scale")
    if not all(hasattr(engine.optimizer, name) for name in needed):
        raise ConfigError("deepspeed", f"version {deepspeed.__version__} is unknown", "install deepspeed>=0.19.8,<0.20")
