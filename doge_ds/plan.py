"""`doge-ds plan --config RUN.json`: what a run will read, compute, hold and write, before anything is paid for.

It needs no GPU, starts no ranks and builds no weights: a login node has the answer in seconds. What the program would
refuse is refused here with the same line. The table of domains is also what both programs print before their first
step.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from doge_ds.command_line import add_settings
from doge_ds.errors import ConfigError

if TYPE_CHECKING:
    from doge_ds.planning import Plan, RankPlan

_EXAMPLES = """examples:
  doge-ds plan --config ds_configs/runs/demo_proxy.json
  doge-ds plan --config ds_configs/runs/base_124m.json --mixture natural --gpus 8 --gpu_memory 40 --tflops 120
  doge-ds plan --config ds_configs/runs/proxy_82m.json --set data.path=data/store training.steps=5000 --json

GB are 10^9 bytes. docs/planning.md says how each figure is found and what is not in it."""

GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds plan`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--config", type=Path, required=True, help="run configuration of a proxy or a base")
    add_settings(parser, "settings that replace the file's, as in the training programs")
    parser.add_argument(
        "--mixture", help="of a base run, as in train_base.py; by default the configuration's, or uniform"
    )
    parser.add_argument("--gpus", type=positive_int, metavar="N", help="ranks; by default 1 and up to 8, if they fit")
    parser.add_argument(
        "--gpu_memory", type=positive_number, metavar="GB", help="of one device; refuse what does not fit"
    )
    parser.add_argument(
        "--tflops",
        type=positive_number,
        metavar="X",
        help="TFLOP/s that a device really reaches, for the hours; by default 0.4 of training.peak_tflops",
    )
    parser.add_argument("--json", action="store_true", help="for programs: all figures as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds plan`: print the plan. Raises DogeError for what cannot be run, after the plan where there is one."""
    # torch and DeepSpeed take seconds to load; --help and a mistyped option need not wait for them. DeepSpeed's log
    # goes to what is stdout while it is loaded, and stdout is for the plan.
    with contextlib.redirect_stdout(sys.stderr):
        from doge_ds.planning import as_json, make_plan
        from doge_ds.training.launch import quieten_libraries

    quieten_libraries()
    plan = make_plan(arguments.config, arguments.settings, arguments.mixture, arguments.gpus, arguments.tflops)
    print(json.dumps(as_json(plan), indent=2) if arguments.json else plan_text(plan), flush=True)
    if arguments.gpu_memory is not None:
        refuse_what_does_not_fit(plan, arguments.gpu_memory)
    return 0


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


@dataclass(frozen=True)
class DomainNeed:
    """One domain in one run: `needed` and `available` are sequences; a target that is not trained on has no weight."""

    name: str
    weight: float | None
    needed: int
    available: int

    @property
    def epochs(self) -> float:
        return self.needed / self.available if self.available else 0.0


def plan_table(needs: Sequence[DomainNeed]) -> str:
    """The table: domain, weight, sequences needed, sequences there, epochs; a line more where text is repeated."""
    width = max(len("domain"), *(len(need.name) for need in needs))
    lines = [f"{'domain':<{width}}  {'weight':>7}  {'sequences needed':>16}  {'there':>10}  {'epochs':>6}"]
    for need in needs:
        weight = "-" if need.weight is None else f"{need.weight:.4f}"
        lines.append(
            f"{need.name:<{width}}  {weight:>7}  {need.needed:>16,}  {need.available:>10,}  {need.epochs:>6.2f}"
        )
    return "\n".join([*lines, *filter(None, [repetition_warning(needs)])])


def repetition_warning(needs: Sequence[DomainNeed]) -> str:
    """One line where the run reads domains more than once, the most often read first; "" where it does not."""
    repeated = sorted((need for need in needs if need.epochs > 1), key=lambda need: -need.epochs)
    if not repeated:
        return ""
    more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    times = ", ".join(f"{need.name} {need.epochs:.2f} times" for need in repeated[:3]) + more
    remedy = "add text or lower training.steps (data.max_epochs sets what is refused)"
    return f"warning: the run reads domains more than once: {times}; {remedy}"


def refuse_too_many_epochs(needs: Sequence[DomainNeed], max_epochs: float) -> None:
    """Raises ConfigError for the domain that is read most often, where that is more than `max_epochs`."""
    worst = max(needs, key=lambda need: need.epochs)
    if worst.epochs > max_epochs:
        raise ConfigError(
            "data.max_epochs",
            f"{worst.name} would be read {worst.epochs:.1f} times, more than {max_epochs:g}",
            "lower training.steps or its weight in the mixture, add text, or raise data.max_epochs",
        )


def refuse_what_does_not_fit(plan: "Plan", gpu_memory: float) -> None:
    """Raises ConfigError where a rank of the plan's last column needs more than `gpu_memory` GB of its device."""
    rank = plan.ranks[-1]
    needed = rank.memory.total("device") / GB
    if needed <= gpu_memory:
        return
    largest = max(
        (item for item in rank.memory.items if item.place == "device"), key=lambda item: max(item.backward, item.step)
    )
    size = max(largest.backward, largest.step) / GB
    problem = f"a rank of {rank.ranks} needs {needed:.2f} GB, {size:.2f} of them for {largest.name}"
    remedy = "take more ranks, a smaller training.micro_batch_size, or training.gradient_checkpointing"
    if plan.kind == "proxy":
        remedy += '; for the rows doge.gradient_dtype="bfloat16", doge.gradient_store="cpu" or doge.domains_per_step'
    else:
        remedy += "; or offload, as ds_configs/zero3_offload.json does"
    raise ConfigError(f"--gpu_memory {gpu_memory:g}", problem, remedy)


def plan_text(plan: "Plan") -> str:
    """The plan for people."""
    parts = [_head(plan), _domains(plan), _ranks(plan), _operations(plan), _memory(plan), _checkpoints(plan)]
    return "\n\n".join("\n".join(lines) for lines in [*parts, plan.warnings] if lines)


def _head(plan: "Plan") -> list[str]:
    mixture = f", mixture {plan.mixture}" if plan.mixture else ""
    return [f"{plan.kind}: {plan.parameters:,} parameters, {plan.steps:,} steps{mixture}"]


def _domains(plan: "Plan") -> list[str]:
    rows = [["domain", "weight", "tokens there", "tokens needed", "epochs", "repeats from step"]]
    length = plan.sequence_length
    for need in plan.needs:
        weight = "-" if need.weight is None else f"{need.weight:.4f}"
        repeats = f"{plan.repeats[need.name]:,}" if need.name in plan.repeats else "-"
        tokens = [f"{count * length:,}" for count in (need.available, need.needed)]
        rows.append([need.name, weight, *tokens, f"{need.epochs:.2f}", repeats])
    # <mix> has its sequences from the other domains, so what is there is no sum.
    rows.append(["total", "", "", f"{plan.tokens:,}", "", ""])
    return _aligned(rows)


def _ranks(plan: "Plan") -> list[str]:
    found = ", ".join(map(str, plan.allowed_ranks))
    return [f"ranks that the batch allows: {found}"]


def _operations(plan: "Plan") -> list[str]:
    if plan.flops is None:
        return []
    flops = plan.flops
    rows = [
        ["6 N D", f"{flops.parameters:.3g}", f"N = {flops.multiplied:,} parameters that a token is multiplied with"],
        ["attention", f"{flops.attention:.3g}", f"as if every token saw all {plan.sequence_length:,} of its sequence"],
        *([["gradients", f"{flops.gradients:.3g}", "Gram matrices and weighted sums"]] if flops.gradients else []),
        *([["reference model", f"{flops.reference:.3g}", "its losses: forward passes"]] if flops.reference else []),
        ["total", f"{flops.total:.3g}", "what gradient checkpointing computes again is not in it"],
    ]
    lines = ["floating-point operations, D = all tokens that are read", *_aligned(rows, text_columns=(0, 2))]
    if plan.tflops is None:
        return [*lines, "hours: give --tflops, what one device really reaches, or set training.peak_tflops"]
    hours = ", ".join(f"{rank.hours:,.2f} on {_count(rank)}" for rank in plan.ranks if rank.hours is not None)
    return [*lines, f"hours at {plan.tflops:g} TFLOP/s a device: {hours}; without saving, starting and waiting"]


def _memory(plan: "Plan") -> list[str]:
    """A table of two columns for each number of ranks; an item has its place where it is not the only one."""
    names = list(dict.fromkeys((item.name, item.place) for rank in plan.ranks for item in rank.memory.items))
    places = list(dict.fromkeys(place for _, place in names))
    rows = [["", *(text for rank in plan.ranks for text in (_count(rank), ""))]]
    rows.append(["", *(text for _ in plan.ranks for text in ("gradients", "step"))])
    for name, place in names:
        cells = [text for rank in plan.ranks for text in _item_cells(rank, name, place)]
        rows.append([f"{name}, {place}" if len(places) > 1 else name, *cells])
    for place in places:
        totals = [text for rank in plan.ranks for text in _total_cells(rank, place)]
        rows.append([f"total, {place}", *totals])
    estimates = ", ".join(
        f"{rank.memory.deepspeed_estimate / GB:.2f} on {_count(rank)} (here {rank.memory.model_states / GB:.2f})"
        for rank in plan.ranks
    )
    batches = ", ".join(f"{rank.micro_batches} x {rank.micro_batch_size} on {_count(rank)}" for rank in plan.ranks)
    return [
        "memory of one rank in GB, while gradients are computed and in the optimizer's step",
        *_aligned(rows),
        f"micro-batches: {batches}",
        f"DeepSpeed's estimate of model states, for 16-bit training: {estimates}",
    ]


def _item_cells(rank: "RankPlan", name: str, place: str) -> Iterator[str]:
    found = [item for item in rank.memory.items if (item.name, item.place) == (name, place)]
    for size in (sum(item.backward for item in found), sum(item.step for item in found)):
        yield f"{size / GB:.2f}" if size else "-"


def _total_cells(rank: "RankPlan", place: str) -> Iterator[str]:
    there = [item for item in rank.memory.items if item.place == place]
    for size in (sum(item.backward for item in there), sum(item.step for item in there)):
        yield f"{size / GB:.2f}"


def _checkpoints(plan: "Plan") -> list[str]:
    sizes = plan.checkpoints
    line = (
        f"checkpoints in GB: one {sizes.one / GB:.2f}, kept {sizes.kept / GB:.2f}, while saving {sizes.most / GB:.2f}"
    )
    return [line + (f"; hf/ {sizes.exported / GB:.2f}" if sizes.exported else "")]


def _count(rank: "RankPlan") -> str:
    return f"{rank.ranks} rank{'s' if rank.ranks > 1 else ''}"


def _aligned(rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> list[str]:
    """Columns as wide as their widest cell; numbers to the right, text to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if number in text_columns else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
