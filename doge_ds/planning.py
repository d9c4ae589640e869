"""What a run will read, compute, hold and write: all that `doge-ds plan` tells, from the programs' own checks."""

import math
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from doge_ds import train_base, train_proxy
from doge_ds.command_line import read_run_arguments
from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.errors import ConfigError
from doge_ds.json_files import read_json_object
from doge_ds.plan import DomainNeed, repetition_warning
from doge_ds.training.engine import cut_into_micro_batches
from doge_ds.training.launch import Ranks
from doge_ds.training.memory import RankMemory, RankShape, Rows, checkpoint_bytes, rank_memory
from doge_ds.training.model import flops_parts, flops_per_token, parameter_count

Kind = Literal["proxy", "base"]
Job = train_proxy.ProxyJob | train_base.BaseJob
Needs = Callable[[int], list[DomainNeed]]

LIKELY_RANKS = (1, 2, 4, 8)  # of one node; the largest that the batch allows is planned for by default
ASSUMED_SHARE_OF_PEAK = 0.4
NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the whole run.

    Attributes:
        parameters: 6 N D, with `multiplied` the N and all tokens that are read the D.
        attention: 12 L H Q T D.
        gradients: of a proxy's Gram matrices and weighted sums.
        reference: of DoReMi's reference model: forward passes, a third of what training takes.
        multiplied: parameters that a token is multiplied with.
    """

    parameters: float
    attention: float
    gradients: float
    reference: float
    multiplied: int

    @property
    def total(self) -> float:
        return self.parameters + self.attention + self.gradients + self.reference


@dataclass(frozen=True)
class RankPlan:
    """A rank among so many: what it holds, and how long the run takes (None where the speed is not known)."""

    ranks: int
    micro_batch_size: int
    micro_batches: int
    memory: RankMemory
    hours: float | None


@dataclass(frozen=True)
class CheckpointPlan:
    """Bytes on disk: of one checkpoint; of those kept; of all while one more is written; of the exported model."""

    one: int
    kept: int
    most: int
    exported: int


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        needs: sequences of each domain.
        repeats: for each domain that is read more than once, the first step, counted from 1, that reads again.
        mixture: what a base trains on, in words.
        tokens: of all steps.
        allowed_ranks: numbers of ranks that divide the batch.
        ranks: for each number of ranks that is planned for; the last is the one that was asked for.
        tflops: 10^12 operations a second that one device is taken to reach; None where nobody said.
        warnings: one line each.
    """

    kind: Kind
    parameters: int
    steps: int
    sequence_length: int
    needs: list[DomainNeed]
    repeats: dict[str, int]
    mixture: str
    tokens: int
    allowed_ranks: list[int]
    ranks: list[RankPlan]
    flops: Flops | None
    tflops: float | None
    checkpoints: CheckpointPlan
    warnings: list[str]


def make_plan(path: Path, settings: Sequence[str], mixture: str | None, gpus: int | None, tflops: float | None) -> Plan:
    """Plan one run; starts nothing and needs no device.

    Args:
        path: run configuration.
        settings: `--set`.
        mixture: `--mixture`; None for the configuration's own, or uniform where it has none.
        gpus: ranks; None for one alone and the most of LIKELY_RANKS that the batch allows.
        tflops: 10^12 operations a second that one device reaches; None for a share of training.peak_tflops.

    Raises:
        DogeError: all that the program itself would refuse; a configuration of neither program; `mixture` of a proxy.
    """
    kind, has_mixture = kind_of_run(path, settings)
    if kind == "proxy" and mixture:
        raise ConfigError(f"--mixture {mixture}", "belongs to a base run, and this is a proxy", "leave it out")
    given = mixture or (None if kind == "proxy" or has_mixture else "uniform")
    key, sequences, micro_batch_size = _batch(kind, path, settings)
    allowed = allowed_ranks(sequences, micro_batch_size)
    most = gpus or max((count for count in allowed if count in LIKELY_RANKS), default=1)
    job = _check(kind, path, settings, given, most)
    training = job.config.training
    needs = _needs(job)
    flops = _flops(job)
    tflops = tflops or (training.peak_tflops * ASSUMED_SHARE_OF_PEAK if training.peak_tflops else None)
    ranks = []
    for count in sorted({gpus} if gpus else {1, most}):
        size, number = cut_into_micro_batches(key, sequences, micro_batch_size, count)
        shape = _shape(job, count, size, number)
        hours = flops.total / (count * tflops * 1e12) / 3600 if flops and tflops else None
        ranks.append(RankPlan(count, size, number, rank_memory(shape), hours))
    whole = needs(training.steps)
    return Plan(
        kind=kind,
        parameters=parameter_count(job.model),
        steps=training.steps,
        sequence_length=job.config.data.sequence_length,
        needs=whole,
        repeats=first_repeats(needs, training.steps),
        mixture=_told(kind, mixture, has_mixture),
        tokens=sum(need.needed for need in whole) * job.config.data.sequence_length,
        allowed_ranks=allowed,
        ranks=ranks,
        flops=flops,
        tflops=tflops,
        checkpoints=_checkpoints(job, shape),
        warnings=_warnings(whole, ranks, flops),
    )


def operations(path: Path, settings: Sequence[str], mixture: str | None, ranks: int) -> Flops | None:
    """The operations of one run and the programs' own checks alone, without memory, which takes most of a plan's time.

    Raises:
        DogeError: all that the program itself would refuse.
    """
    return _flops(_check(kind_of_run(path, settings)[0], path, settings, mixture, ranks))


def _told(kind: Kind, mixture: str | None, has_mixture: bool) -> str:
    if kind == "proxy":
        return ""
    if mixture:
        return mixture
    return "of the configuration" if has_mixture else "uniform, because none was given"


def kind_of_run(path: Path, settings: Sequence[str]) -> tuple[Kind, bool]:
    """Whose configuration this is, by its keys, and whether it has a mixture of its own.

    Raises:
        ConfigError: it cannot be read, or has the keys of neither program.
    """
    values = read_json_object(path)
    training = values.get("training")
    keys = {f"training.{key}" for key in training} if isinstance(training, dict) else set()
    keys |= {*values, *(setting.partition("=")[0] for setting in settings)}
    if "training.sequences_per_domain" in keys or any(key.partition(".")[0] == "doge" for key in keys):
        return "proxy", False
    if "training.global_batch_size" in keys:
        return "base", "mixture" in keys
    raise ConfigError(
        str(path),
        "is neither a proxy's configuration nor a base's",
        "give training.sequences_per_domain or training.global_batch_size",
    )


def allowed_ranks(sequences: int, micro_batch_size: int | None) -> list[int]:
    """Numbers of ranks that cut a step's sequences into whole micro-batches, ascending."""
    parts, rest = divmod(sequences, micro_batch_size or 1)
    return [] if rest else [count for count in range(1, parts + 1) if parts % count == 0]


def first_repeats(needs: Needs, steps: int) -> dict[str, int]:
    """For each domain that the run reads more than once, the first step, from 1, that reads a sequence again."""

    def is_repeated(place: int, done: int) -> bool:
        need = needs(done)[place]
        return need.needed > need.available

    return {
        need.name: bisect_left(range(steps + 1), True, key=partial(is_repeated, place))
        for place, need in enumerate(needs(steps))
        if is_repeated(place, steps)
    }


def _batch(kind: Kind, path: Path, settings: Sequence[str]) -> tuple[str, int, int | None]:
    """The key of a step's sequences, how many these are, and the micro-batch size."""
    if kind == "proxy":
        proxy = load_config(ProxyConfig, path, settings).training
        return "sequences_per_domain", proxy.sequences_per_domain, proxy.micro_batch_size
    base = load_config(BaseConfig, path, settings).training
    return "global_batch_size", base.global_batch_size, base.micro_batch_size


def _check(kind: Kind, path: Path, settings: Sequence[str], mixture: str | None, ranks: int) -> Job:
    """What the program itself checks, with a run directory that is not there."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", str(path), "--output", str(Path(folder) / "run")]
        words += ["--set", *settings] if settings else []
        words += ["--mixture", mixture] if mixture else []
        options = read_run_arguments("", words, needs_mixture=kind == "base")
        planned = Ranks(rank=0, world_size=ranks, local_rank=0)
        return train_proxy.check(options, planned) if kind == "proxy" else train_base.check(options, planned)


def _needs(job: Job) -> Needs:
    """What so many steps of the job read."""
    if isinstance(job, train_proxy.ProxyJob):
        return lambda steps: train_proxy.domain_needs(job, steps)
    return lambda steps: train_base.domain_needs(job, steps)


def _shape(job: Job, ranks: int, micro_batch_size: int, micro_batches: int) -> RankShape:
    rows, accumulates = None, micro_batches > 1
    if isinstance(job, train_proxy.ProxyJob):
        options = job.config.options
        dtype = NUMBER_BYTES[options.gradient_dtype] if options.gradient_dtype else None
        rows = Rows(sum(_rows_of_an_update(job)), dtype, options.gradient_store == "cpu")
        accumulates |= job.config.doge.update_every > 1
    return RankShape(
        job.model,
        job.deepspeed_config,
        job.config.training,
        job.config.data.sequence_length,
        ranks,
        micro_batch_size,
        accumulates,
        rows,
        reference=job.reference if isinstance(job, train_proxy.ProxyJob) else None,
    )


def _rows_of_an_update(job: train_proxy.ProxyJob) -> tuple[int, int]:
    """Train rows and further rows of a step that updates the weights."""
    domains = len(job.train_domains)
    return job.config.doge.domains_per_step or domains, len(job.loader.row_names) - domains


def _flops(job: Job) -> Flops | None:
    """Of all passes, those of targets and without an update included; None where nobody can count a token's."""
    steps, length = job.config.training.steps, job.config.data.sequence_length
    parts = flops_parts(job.model, length)
    if parts is None:
        return None
    tokens, gradients, reference = job.loader.samples(steps) * length, 0.0, 0.0
    if isinstance(job, train_proxy.ProxyJob):
        train, others = _rows_of_an_update(job)
        updates = sum(job.loader.is_update(step) for step in range(steps))
        gradients = updates * parameter_count(job.model) * (2.0 * (train + others) ** 2 + 2.0 * train)
        if job.reference:
            of_token = flops_per_token(job.reference, length)
            if of_token is None:
                return None
            reference = tokens * of_token / 3
    return Flops(parts[0] * tokens, parts[1] * tokens, gradients, reference, multiplied=round(parts[0] / 6))


def _checkpoints(job: Job, shape: RankShape) -> CheckpointPlan:
    training, one = job.config.training, checkpoint_bytes(shape)
    made = math.ceil(training.steps / training.checkpoint_every)
    exported = 0
    if isinstance(job, train_base.BaseJob):
        exported = parameter_count(job.model) * NUMBER_BYTES[job.config.training.export_dtype]
    keep = training.keep_checkpoints
    return CheckpointPlan(one, one * min(keep, made), one * min(keep + 1, made), exported)


def _warnings(needs: Sequence[DomainNeed], ranks: Sequence[RankPlan], flops: Flops | None) -> list[str]:
    found = [repetition_warning(needs)]
    if not all(rank.memory.activations_known for rank in ranks):
        found.append("warning: this model's activations cannot be counted, so they are missing from the memory")
    if flops is None:
        found.append("warning: operations are counted for models with attention heads and without experts only")
    return [line for line in found if line]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; bytes, tokens, operations and hours, none of them rounded."""
    length = plan.sequence_length
    return {
        "version": 1,
        "kind": plan.kind,
        "parameters": plan.parameters,
        "steps": plan.steps,
        "sequence_length": length,
        "mixture": plan.mixture,
        "tokens": plan.tokens,
        "domains": {
            need.name: {
                "weight": need.weight,
                "tokens_there": need.available * length,
                "tokens_needed": need.needed * length,
                "epochs": need.epochs,
                "repeats_from_step": plan.repeats.get(need.name),
            }
            for need in plan.needs
        },
        "allowed_ranks": plan.allowed_ranks,
        "flops": plan.flops and {**vars(plan.flops), "total": plan.flops.total},
        "tflops": plan.tflops,
        "ranks": [_rank_json(rank) for rank in plan.ranks],
        "checkpoint_bytes": vars(plan.checkpoints),
        "warnings": plan.warnings,
    }


def _rank_json(rank: RankPlan) -> dict[str, Any]:
    memory = rank.memory
    return {
        "ranks": rank.ranks,
        "micro_batch_size": rank.micro_batch_size,
        "micro_batches": rank.micro_batches,
        "hours": rank.hours,
        "memory_bytes": {place: memory.total(place) for place in ("device", "host", "disk")},
        "memory": [vars(item) for item in memory.items],
        "activations_known": memory.activations_known,
        "deepspeed_estimate_bytes": memory.deepspeed_estimate,
    }
