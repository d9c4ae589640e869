"""The ZeRO-2 hook: this rank's shard of every domain's gradient, their Gram matrix, and the weighted sum handed back.

ZeRO-2 leaves on each rank one shard of the gradient, averaged over ranks. <g_i, g_j> is the sum over ranks of the
shards' products, so one all-reduce of rows^2 + rows + 1 numbers a step is all the communication that DoGE adds to the
backward passes. These reduce their gradients once a row: rows times what plain data parallelism moves in a step, and
what ZeRO-2 moves anyway with as many gradient accumulation steps.

It reads `optimizer.averaged_gradients`, which DeepSpeed does not promise: setup.py pins the versions, and the size of
every shard is checked at every collection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from doge_ds.config_sections import DogeConfig, MethodOptions
from doge_ds.errors import ConfigError
from doge_ds.training.gradient_rows import Columns, GradientRows, squared_norm
from doge_ds.training.launch import seed_everything
from doge_ds.training.model import token_losses
from doge_ds.training.reference_model import excess_losses


@dataclass(frozen=True)
class StepSummary:
    """What all ranks know after the one all-reduce of a step.

    Attributes:
        rows: names of the step's rows, in the order in which they came.
        losses: mean token loss of each row, [rows], float64, CPU.
        stop: some rank was asked to stop.
    """

    rows: list[str]
    losses: torch.Tensor
    stop: bool


@dataclass(frozen=True)
class UpdateSummary(StepSummary):
    """The same of a step that updates the weights.

    Attributes:
        gram: inner products of the rows' gradients, or of their selected columns, [rows, rows], float64, CPU; loss
            scale divided out.
        squared_norms: of the rows' whole gradients, [rows], likewise; None where all columns count, so that they are
            the diagonal of `gram`.
        excess_losses: mean over each row's tokens of what its loss is above the reference model's, [rows], likewise;
            None without a reference.
    """

    gram: torch.Tensor
    squared_norms: torch.Tensor | None
    excess_losses: torch.Tensor | None


class DomainGradients:
    """The gradients of one step, one row per domain, sharded as ZeRO-2 shards them.

    A step that updates the weights: `collect` for every row, train rows first; `reduce`; `apply`. One that does not:
    `train`. Then `engine.step()`.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        train_domains: Sequence[str],
        target_rows: int,
        seed: int,
        options: MethodOptions,
        reference: torch.nn.Module | None = None,
    ) -> None:
        """Allocate the rows.

        Args:
            engine: ZeRO-2, gradient_accumulation_steps 1, no optimizer offload.
            train_domains: those whose gradients make up the model's; all other rows are targets.
            target_rows: how many of these there are.
            seed: of dropout.
            options: how many train domains a step has, and where and how precisely rows are kept.
            reference: model whose losses those of the rows are compared with; None where the method needs none.

        Raises:
            ConfigError: the engine is not one that this hook understands.
        """
        _refuse_unknown_engines(engine)
        self._engine = engine
        self._optimizer = engine.optimizer
        self._train_domains = set(train_domains)
        self._seed = seed
        self._sizes = [int(size) for size in self._optimizer.partition_size]
        self._reference = reference
        name = options.gradient_dtype
        dtype = getattr(torch, name) if name else self._optimizer.gradient_accumulation_dtype
        per_step = options.domains_per_step if isinstance(options, DogeConfig) else None
        self._rows = GradientRows(
            per_step or len(train_domains),
            target_rows,
            sum(self._sizes),
            dtype,
            torch.device(engine.device),
            on_host=options.gradient_store == "cpu",
        )
        self._has_selection = False
        self._names: list[str] = []
        self._losses: list[torch.Tensor] = []
        self._excess_losses: list[torch.Tensor] = []
        self._squared_norms: list[torch.Tensor] = []

    def select(self, ranges: Sequence[Columns]) -> None:
        """Score with these columns of this rank's shard only, ascending and disjoint; the model trains on all."""
        self._rows.select(ranges)
        self._has_selection = True

    def collect(self, step: int, row_name: str, micro_batches: Sequence[torch.Tensor]) -> None:
        """Backward passes of one domain; its averaged gradient becomes a row.

        Args:
            step: for the seed of dropout.
            row_name: whose gradient this is; train domains come before all others.
            micro_batches: this rank's token ids, each [micro-batch, sequence_length], int64, on any device.
        """
        # A second backward adds to a preflattened buffer unless its entry is None.
        self._optimizer.averaged_gradients.clear()
        self._backward(step, row_name, micro_batches, 1.0, ends=True)
        pieces = self.shard()
        train_rows = sum(name in self._train_domains for name in self._names)
        if row_name in self._train_domains:
            self._rows.put_train(train_rows, pieces)
        else:
            self._rows.put_target(len(self._names) - train_rows, pieces)
        self._names.append(row_name)
        if self._has_selection:
            self._squared_norms.append(squared_norm(pieces))

    def reduce(self, stop: bool) -> UpdateSummary:
        """Gram matrix, losses and excess losses over all ranks: the one all-reduce (collective).

        Args:
            stop: this rank was asked to stop; travels along so that all ranks stop after the same step.
        """
        rows = len(self._names)
        train_rows = sum(name in self._train_domains for name in self._names)
        scale = float(self._optimizer.loss_scale) ** 2
        gram = self._rows.gram(train_rows, rows - train_rows) / scale
        squared_norms = [norm / scale for norm in self._squared_norms]
        excess = [loss / self._engine.world_size for loss in self._excess_losses]
        self._squared_norms, self._excess_losses = [], []
        parts = [gram.flatten(), *(number.view(1) for number in (*squared_norms, *excess))]
        summary, numbers = self._all_reduce(stop, parts)
        gram, squares, excesses = torch.split(numbers, [rows * rows, len(squared_norms), len(excess)])
        return UpdateSummary(
            summary.rows,
            summary.losses,
            summary.stop,
            gram=gram.view(rows, rows),
            squared_norms=squares if len(squares) else None,
            excess_losses=excesses if len(excesses) else None,
        )

    def apply(self, coefficients: torch.Tensor) -> None:
        """Write sum_j coefficients[j] g_j over the train rows into the tensors that `engine.step()` reads.

        Args:
            coefficients: [train rows], float64; NaN makes DeepSpeed skip the step.
        """
        self._rows.write_weighted_sum(coefficients, self.shard())

    def train(
        self,
        step: int,
        batches: Sequence[tuple[str, Sequence[torch.Tensor]]],
        coefficients: Sequence[float],
        stop: bool,
    ) -> StepSummary:
        """Leave the gradient of sum_j coefficients[j] loss_j for `engine.step()`, without rows (collective).

        One backward pass a micro-batch, which DeepSpeed accumulates, and one all-reduce of the losses and `stop`.
        """
        self._optimizer.averaged_gradients.clear()
        for number, ((name, micro_batches), coefficient) in enumerate(zip(batches, coefficients, strict=True)):
            self._backward(step, name, micro_batches, coefficient, ends=number == len(batches) - 1)
            self._names.append(name)
        return self._all_reduce(stop, [])[0]

    def shard(self) -> list[torch.Tensor]:
        """This rank's averaged gradient in DeepSpeed's own tensors, group by group, padding included."""
        return [tensor for tensors in self._groups() for tensor in tensors]

    def _backward(
        self, step: int, name: str, micro_batches: Sequence[torch.Tensor], coefficient: float, ends: bool
    ) -> None:
        """Backward passes of one row, each loss times `coefficient`; the last one `ends` the accumulation."""
        engine = self._engine
        total, excess = torch.zeros(2, dtype=torch.float64, device=engine.device)
        for number, tokens in enumerate(micro_batches):
            seed_everything(self._seed, step, name, number, engine.global_rank)
            engine.set_gradient_accumulation_boundary(ends and number == len(micro_batches) - 1)
            tokens = tokens.to(engine.device, non_blocking=True)
            losses = token_losses(engine, tokens)
            if self._reference is not None:
                excess += excess_losses(losses, self._reference, tokens) / len(micro_batches)
            loss = losses.mean() / len(micro_batches)
            engine.backward(loss * coefficient)
            total += loss.detach()
        self._losses.append(total)
        if self._reference is not None:
            self._excess_losses.append(excess)

    def _all_reduce(self, stop: bool, numbers: Sequence[torch.Tensor]) -> tuple[StepSummary, torch.Tensor]:
        """Losses and `stop` of the step, and further numbers, summed over ranks in one collective."""
        flag = torch.tensor([float(stop)], dtype=torch.float64, device=self._engine.device)
        losses = torch.stack(self._losses) / self._engine.world_size
        packed = torch.cat([*numbers, losses, flag])
        deepspeed.comm.all_reduce(packed)
        packed = packed.cpu()
        names, self._names, self._losses = self._names, [], []
        first = len(packed) - len(names) - 1
        summary = StepSummary(rows=names, losses=packed[first:-1], stop=bool(packed[-1] > 0))
        return summary, packed[:first]

    def _groups(self) -> Iterator[list[torch.Tensor]]:
        """Two forms: a list of tensors that together fill the shard, or a buffer group that also has the flat shard."""
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


def _refuse_unknown_engines(engine: Any) -> None:
    """Only what this hook was tested with."""
    if engine.zero_optimization_stage() != 2:
        raise ConfigError("deepspeed.zero_optimization.stage", f"is {engine.zero_optimization_stage()}", "DoGE needs 2")
    if engine.gradient_accumulation_steps() != 1:
        raise ConfigError("deepspeed.gradient_accumulation_steps", "must stay 1 in the proxy", "delete it")
    needed = ("averaged_gradients", "partition_size", "gradient_accumulation_dtype", "loss_scale")
    if not all(hasattr(engine.optimizer, name) for name in needed):
        raise ConfigError("deepspeed", f"version {deepspeed.__version__} is unknown", "install deepspeed>=0.19.8,<0.20")
