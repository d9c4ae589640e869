"""Scores from a few tensors of the model, chosen by their cancellation effect (arXiv 2310.15393v1).

In the first steps of the run, which are plain training, every parameter tensor gets the sum over steps of
||gradient|| / ||change of the weights||: large where gradients do much work for little movement, because they cancel
each other. The tensors with the smallest sums are kept (or the largest), and scores are computed from these alone while
the model trains on all. Gradient and weights are sharded; each rank sums the squares of its part of every tensor, and
one all-reduce of 2 numbers a tensor a measured step puts them together.
"""

from collections.abc import Iterator
from typing import Any

import deepspeed
import torch

from doge_ds.config_sections import SelectionConfig
from doge_ds.errors import ConfigError
from doge_ds.training.domain_gradients import DomainGradients
from doge_ds.training.gradient_rows import Columns, column_slices, squared_norm


class TensorSelection:
    """Measures, chooses, and tells `DomainGradients` which columns to score with; does nothing without a selection."""

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, gradients: DomainGradients, selection: SelectionConfig | None
    ) -> None:
        """Args: ZeRO-2 engine; the hook into it; how long to measure and how many tensors to keep.

        Raises:
            ConfigError: the model has fewer tensors than shall be kept.
        """
        self._engine, self._gradients, self._selection = engine, gradients, selection
        self._parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self._sums = torch.zeros(len(self._parameters), dtype=torch.float64)
        self._measured = 0
        self.chosen: list[str] | None = None
        if selection and abs(selection.tensors) > len(self._parameters):
            problem = f"{selection.tensors} cannot be kept of {len(self._parameters)}"
            raise ConfigError("doge.selection.tensors", problem, "give fewer")
        self._fragments = list(self._find_fragments()) if selection else []

    def step(self, step: int) -> bool:
        """`engine.step()`, measured in the first steps (then collective); whether it was applied."""
        if self._selection is None or step >= self._selection.steps:
            self._engine.step()
            return bool(self._engine.was_step_applied())
        gradients, scale = self._gradients.shard(), float(self._engine.optimizer.loss_scale)
        squares = torch.zeros(2, len(self._parameters), dtype=torch.float64, device=self._engine.device)
        for tensor, columns in self._fragments:
            squares[0, tensor] += squared_norm([*column_slices(gradients, *columns)]) / scale**2
        weights = self._engine.optimizer.single_partition_of_fp32_groups
        before = [part.detach().clone() for part in weights]
        self._engine.step()
        changes = [now.detach() - then for now, then in zip(weights, before, strict=True)]
        for tensor, columns in self._fragments:
            squares[1, tensor] += squared_norm([*column_slices(changes, *columns)])
        deepspeed.comm.all_reduce(squares)
        was_applied = bool(self._engine.was_step_applied())
        if was_applied:
            self._add(squares.cpu())
        if step + 1 == self._selection.steps:
            self._choose(self._selection.tensors)
        return was_applied

    def _add(self, squares: torch.Tensor) -> None:
        """Add one step; a tensor that did not move in it (no warm-up rate yet) has no ratio there."""
        gradient, change = squares.sqrt()
        self._sums += torch.where(change > 0, gradient / change.clamp(min=torch.finfo(change.dtype).tiny), 0.0)
        self._measured += 1

    def _choose(self, tensors: int) -> None:
        """The smallest sums first, ties in the model's order; from the other end where `tensors` is negative.

        A tensor without a gradient has a sum of 0 and nothing to score with.
        """
        ordered = torch.sort(self._sums, descending=tensors < 0, stable=True).indices.tolist()
        ranked = [number for number in ordered if self._sums[number] > 0]
        names = list(self._parameters)
        self._select([names[number] for number in sorted(ranked[: abs(tensors)])])

    def _select(self, chosen: list[str]) -> None:
        self.chosen = chosen
        numbers = {number for number, name in enumerate(self._parameters) if name in set(chosen)}
        self._gradients.select(sorted(columns for tensor, columns in self._fragments if tensor in numbers))

    def _find_fragments(self) -> Iterator[tuple[int, Columns]]:
        """(number of a parameter, columns of this rank's shard that hold a part of it)."""
        sizes = [int(size) for size in self._engine.optimizer.partition_size]
        for number, parameter in enumerate(self._parameters.values()):
            mapping = parameter._hp_mapping  # DeepSpeed's own record, for universal checkpoints
            if mapping is not None:
                address = mapping.get_hp_fragment_address()
                begin = sum(sizes[: mapping.param_group_index]) + address.start
                yield number, (begin, begin + address.numel)

    def facts(self) -> dict[str, Any]:
        """What was measured and chosen, for RUN/selection.json."""
        sizes = {name: parameter.numel() for name, parameter in self._parameters.items()}
        chosen = self.chosen or []
        return {
            "measured_steps": self._measured,
            "selected": chosen,
            "share_of_parameters": sum(sizes[name] for name in chosen) / sum(sizes.values()),
            "cancellation_effect": dict(zip(sizes, self._sums.tolist(), strict=True)),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, by name."""
        return {"sums": self.facts()["cancellation_effect"], "measured": self._measured, "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self._sums = torch.tensor([state["sums"][name] for name in self._parameters], dtype=torch.float64)
        self._measured = state["measured"]
        if state["chosen"] is not None:
            self._select(state["chosen"])
