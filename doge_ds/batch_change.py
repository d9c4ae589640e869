"""How many sequences a step of a run reads, and what happens to that when a run is continued.

The run configuration says it: `training.global_batch_size` of a base, `training.sequences_per_domain` of a proxy.
Another number than the run's is another run, which RunDirectory refuses. With `--change_batch` it is a change: steps
that the newest checkpoint has behind it keep the number that they were trained with, all later ones get the new one,
and go on with the sample after the last. It is recorded as `batches` of run.json in one piece, once the checkpoint has
been loaded and before the first step. A kill before that leaves the run as it was; a kill later finds the new number at
the record's end, and changes nothing again, with the option or without.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_ds.command_line import RunArguments
from doge_ds.config import BaseConfig, ProxyConfig
from doge_ds.data.batches import BatchSizes
from doge_ds.errors import RunError
from doge_ds.json_files import parse_json, read_bytes
from doge_ds.training.checkpoints import Checkpoints


@dataclass(frozen=True)
class RunBatches:
    """What the steps of a run read.

    Attributes:
        sizes: of every step.
        is_recorded: whether run.json has them, since they changed once.
        changed_at: steps done where this start changes them; None where it does not.
    """

    sizes: BatchSizes
    is_recorded: bool = False
    changed_at: int | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Their part of run.json; nothing where they never changed."""
        is_needed = self.is_recorded or self.changed_at is not None
        return {"batches": self.sizes.as_json()} if is_needed else {}

    @property
    def lines(self) -> list[str]:
        """What to know of them before the first step."""
        found = []
        if len(self.sizes.stages) > 1:
            stages = ", ".join(f"{size:,} from step {start:,} on" for start, size in self.sizes.stages)
            found.append(f"the batch changes: sequences {stages}")
        if self.changed_at is not None:
            found.append(f"this start changes the batch, from step {self.changed_at:,} on")
        return found


def steps_done(options: RunArguments, config: BaseConfig | ProxyConfig, result: str) -> int:
    """Steps that a run which shall change has behind it: all of them where it is finished, 0 where nothing changes.

    Args:
        result: name of the file or folder whose presence says that the run is finished.
    """
    if not (options.change_mixture or options.change_batch):
        return 0
    if (options.output / result).exists():
        return config.training.steps
    return Checkpoints(options.output / "checkpoints", config.training).steps_done


def another_start(changes: Iterable[int | None], first_step: int) -> RunError | None:
    """A change is made from the step that this rank saw before any other was asked; wrong where the run goes on from
    another one, because the checkpoint was found damaged, or a network file system showed an older one.

    Args:
        changes: steps done where mixture and batch change; None for no change.
        first_step: steps that the loaded checkpoint has behind it.
    """
    for step in changes:
        if step not in (None, first_step):
            problem = f"would change from step {step} on, and its checkpoint is of step {first_step}"
            return RunError("the run", problem, "start it again by the same command")
    return None


def sequences_of_a_step(config: BaseConfig | ProxyConfig) -> int:
    """Of the configuration: a base's batch, or what each row of a proxy's step has."""
    if isinstance(config, BaseConfig):
        return config.training.global_batch_size
    return config.training.sequences_per_domain


def continued_batches(options: RunArguments, config: BaseConfig | ProxyConfig, done: int) -> RunBatches:
    """What holds in the run directory; the rule stands at the head of this file. Changes nothing.

    Args:
        options: where the run is, and `--change_batch`.
        config: of this start.
        done: from `steps_done`.

    Raises:
        RunError: a change of a run that has done all its steps.
    """
    wanted = sequences_of_a_step(config)
    record = _read_record(options.output)
    if record is None:
        return RunBatches(BatchSizes.of(wanted))
    is_same = record.sizes.last.sequences == wanted
    # A damaged checkpoint may have left one from before the last change.
    if is_same and (not options.change_batch or record.sizes.last.from_step <= done):
        return record
    if not options.change_batch:
        return RunBatches(BatchSizes.of(wanted))
    if done >= config.training.steps:
        problem = f"has done all its {config.training.steps} steps"
        raise RunError(str(options.output), problem, "name another --output for another batch")
    return RunBatches(record.sizes.changed_from(done, wanted), changed_at=done)


def _read_record(run: Path) -> RunBatches | None:
    """From run.json, or config.json where they never changed; None where there is no run: RunDirectory says so."""
    try:
        batches = parse_json(read_bytes(run / "run.json")).get("batches")
        if batches is not None:
            return RunBatches(BatchSizes.from_json(batches), is_recorded=True)
        training = parse_json(read_bytes(run / "config.json"))["training"]
        return RunBatches(BatchSizes.of(training.get("global_batch_size") or training["sequences_per_domain"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
