"""How many sequences a step reads, where that changes in mid-run: which of all samples a step has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self


class BatchStage(NamedTuple):
    """From so many steps done on, a step reads this many sequences: a base's batch, or of each row of a proxy."""

    from_step: int
    sequences: int


@dataclass(frozen=True)
class BatchSizes:
    """The sequences of every step of a run. Samples are numbered on across a change: none is lost or comes twice.

    Attributes:
        stages: by rising `from_step`, the first from 0.

    Raises:
        ValueError: no stages, not from step 0, not rising, or one of no sequences.
    """

    stages: tuple[BatchStage, ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        if starts[:1] != [0] or starts != sorted(set(starts)):
            raise ValueError(f"batches have stages from the steps {starts} on, not from 0 and then from later ones")
        for start, size in self.stages:
            if type(start) is not int or type(size) is not int or size < 1:
                raise ValueError(f"batches have {size} sequences from step {start} on")

    @classmethod
    def of(cls, sizes: "int | BatchSizes") -> "BatchSizes":
        """The same number in every step, or what is made already."""
        return sizes if isinstance(sizes, BatchSizes) else cls((BatchStage(0, sizes),))

    @classmethod
    def from_json(cls, values: Sequence[dict[str, Any]]) -> Self:
        """What `as_json` gave. Raises ValueError, LookupError or TypeError for anything else."""
        return cls(tuple(BatchStage(value["from_step"], value["sequences"]) for value in values))

    def as_json(self) -> list[dict[str, int]]:
        """[{"from_step": 0, "sequences": 8}, ...]"""
        return [stage._asdict() for stage in self.stages]

    @property
    def last(self) -> BatchStage:
        """The stage that a run which goes on is in."""
        return self.stages[-1]

    def at(self, step: int) -> int:
        """Sequences of this 0-based step."""
        return self._begun(step + 1)[-1].sequences

    def samples(self, steps: int) -> int:
        """Sequences of the first `steps` steps."""
        begun = self._begun(steps)
        ends = [*(start for start, _ in begun[1:]), steps]
        return sum((end - start) * size for (start, size), end in zip(begun, ends, strict=True))

    def changed_from(self, step: int, sequences: int) -> "BatchSizes":
        """The same until so many steps are done, and from then on this many sequences."""
        kept = [stage for stage in self.stages if stage.from_step < step]
        if kept and kept[-1].sequences == sequences:
            return BatchSizes(tuple(kept))
        return BatchSizes((*kept, BatchStage(step, sequences)))

    def identity(self, samples: int, samples_after: Callable[[int], int]) -> int | list[BatchStage]:
        """What of this decides the first `samples` samples of a run, as JSON; later stages do not count.

        Args:
            samples_after: how many there are after so many steps, over all ranks and rows.
        """
        begun = [stage for stage in self.stages if samples_after(stage.from_step) < samples]
        return begun if len(begun) > 1 else self.stages[0].sequences

    def _begun(self, steps: int) -> Sequence[BatchStage]:
        """The stages of the first `steps` steps; at least the first."""
        return [stage for stage in self.stages if stage.from_step < steps] or self.stages[:1]


def check_cut(sequences: int, micro_batch_size: int, rank: int, world_size: int) -> None:
    """Raises ValueError where `sequences` are no whole micro-batches on every rank, or there is no such rank."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    if sequences < 1 or micro_batch_size < 1 or sequences % (world_size * micro_batch_size):
        raise ValueError(f"{sequences} sequences for {world_size} ranks in micro-batches of {micro_batch_size}")
