"""Which sample comes n-th: a pure function of the weights, the sequence counts and the seed.

    order = MixtureOrder({"arxiv": 9_000, "books": 120_000}, [Segment(0, {"arxiv": 0.3, "books": 0.7})], seed=1)
    domain, sequence = order.locate(np.arange(1024, 2048))

Nothing is stored but one period of 65536 slots a segment (384 KiB), so a run continues from `samples_seen` alone. The
n-th sample does not depend on the number of ranks; `slots_of_rank` only deals out the slots of one batch. After every
n each domain's count is less than one sample from n times its integer weight / PERIOD; random draws would be off by
hundreds after a million samples. The mixture is the one that the base model is trained on.
"""

import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from doge_ds.data.permutation import FORMAT_VERSION, Int64Array, Permutation
from doge_ds.errors import ConfigError, MixtureError, StoreError, nearest

UInt16Array = npt.NDArray[np.uint16]
Part = Literal["all", "own", "reserved"]

PERIOD = 65536  # slots; weights are integers in units of 1 / 65536, and a domain's number fits in 16 bits


def apportion(weights: Mapping[str, float]) -> dict[str, int]:
    """Domain weights as integers that sum to PERIOD, by largest remainder; equal remainders go to the first name.

    Args:
        weights: fractions of all samples, not negative, that sum to 1 within 1e-6.

    Returns:
        Samples of each domain in one period, in the order of `weights`; 0 where the weight is 0. Raises MixtureError
        where a weight is negative or not finite, the sum is not 1, or a positive weight rounds to 0.
    """
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise MixtureError(f"domain {name!r}", f"has weight {weight}", "weights are numbers from 0 to 1")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        raise MixtureError("the domain weights", f"sum to {total:.9g}", "divide each by their sum to make it 1")
    quotas = {name: weight * PERIOD for name, weight in weights.items()}  # exact: PERIOD is a power of two
    shares = {name: math.floor(quota) for name, quota in quotas.items()}
    by_remainder = sorted((name for name in weights if weights[name] > 0), key=lambda n: (shares[n] - quotas[n], n))
    for name in by_remainder[: PERIOD - sum(shares.values())]:
        shares[name] += 1
    for name in by_remainder:
        if shares[name] == 0:
            problem = f"has weight {weights[name]:.3g}, which rounds to 0 of {PERIOD}"
            raise MixtureError(f"domain {name!r}", problem, f"set it to 0 or to at least {1 / PERIOD:.3g}")
    return shares


def without_traces(weights: Mapping[str, float]) -> dict[str, float]:
    """Learned weights as `apportion` takes them: below one slot of a period 0, the others divided by their sum."""
    kept = {name: weight if weight >= 1 / PERIOD else 0.0 for name, weight in weights.items()}
    total = math.fsum(kept.values())
    return {name: weight / total for name, weight in kept.items()}


def build_period(integer_weights: Mapping[str, int]) -> tuple[UInt16Array, UInt16Array]:
    """One period of slots, such that after every slot each domain's count is less than one from its due share.

    Unit job j of a domain with integer weight a is released at slot floor(j * PERIOD / a) and due by slot
    ceil((j + 1) * PERIOD / a) - 1; within these windows the count cannot err by one. The earliest deadline goes first,
    which meets every deadline that can be met (Liu and Layland 1973), and these can (Baruah et al. 1996, with one
    processor). Sorting the windows' mid-points instead looks the same and errs by up to 23.

    Args:
        integer_weights: from `apportion`; their order does not matter, equal deadlines go by name.

    Returns:
        table: [PERIOD], which domain has the slot, as index into the sorted names of positive weight.
        rank: [PERIOD], how many earlier slots of the period the same domain has.
        Raises ValueError where the weights do not sum to PERIOD.
    """
    names = sorted(name for name, share in integer_weights.items() if share > 0)
    shares = np.array([integer_weights[name] for name in names], dtype=np.int64)
    if shares.sum() != PERIOD:
        raise ValueError(f"integer weights sum to {shares.sum()}, not to {PERIOD}")
    # One entry a job, domain after domain.
    domain = np.repeat(np.arange(len(names)), shares)
    job = np.arange(PERIOD) - np.repeat(np.cumsum(shares) - shares, shares)
    release = job * PERIOD // shares[domain]
    deadline = -((job + 1) * -PERIOD // shares[domain]) - 1
    by_release = np.argsort(release, kind="stable")
    releases = [*release[by_release].tolist(), PERIOD]  # the last entry ends the inner loop below
    urgencies = (deadline * len(names) + domain)[by_release].tolist()  # deadline first, then name, in one number
    waiting: list[int] = []
    taken: list[int] = []
    released = 0
    for slot in range(PERIOD):
        while releases[released] <= slot:
            heapq.heappush(waiting, urgencies[released])
            released += 1
        taken.append(heapq.heappop(waiting))
    table = np.array(taken, dtype=np.int64) % len(names)
    rank = np.empty(PERIOD, dtype=np.uint16)
    rank[np.argsort(table, kind="stable")] = job  # a domain's deadlines increase, so its jobs ran in their order
    return table.astype(np.uint16), rank


class DomainOrder:
    """The order of one domain's sequences: every epoch visits each exactly once, in an order of its own.

    It depends on the seed and the domain's name and count, never on which other domains there are.

    The target `mix` needs sequences that no training gradient ever sees, so that their noise is independent. For it a
    domain is split for the whole run, by a permutation keyed by (seed, name), into its "reserved" part of
    max(1, count // (train domains + 1)) sequences and its "own" part, the rest. Each part has its own epochs.

    Attributes:
        sequence_count: sequences in this part, the length of an epoch.
    """

    def __init__(self, name: str, sequence_count: int, seed: int, part: Part = "all", train_domains: int = 0) -> None:
        """Args: the domain; its sequences; the run's seed; which part, and for a part the number of train domains.

        Raises StoreError where there is no sequence, or for a part fewer than two.
        """
        if part != "all" and train_domains < 1:
            raise ValueError(f"part {part!r} for {train_domains} train domains")
        needed = 1 if part == "all" else 2
        if sequence_count < needed:
            problem = f"has {sequence_count} whole training sequences where at least {needed} must be"
            raise StoreError(f"domain {name!r}", problem, "use a shorter data.sequence_length or prepare more text")
        reserved = 0 if part == "all" else max(1, sequence_count // (train_domains + 1))
        self.sequence_count = reserved if part == "reserved" else sequence_count - reserved
        self._epochs = Permutation(self.sequence_count, "sequences", seed, name, part)
        self._split = None if part == "all" else Permutation(sequence_count, "split", seed, name)
        self._first = reserved if part == "own" else 0

    def sequences(self, positions: npt.ArrayLike) -> Int64Array:
        """The domain's sequences at these places of its endless order.

        Args:
            positions: [n], int64, not negative; position p lies in epoch p // sequence_count.

        Returns:
            [n], int64, indices into all of the domain's sequences. Raises ValueError for a negative position.
        """
        epochs, places = np.divmod(_not_negative(positions), self.sequence_count)
        sequences = self._epochs(places, epochs)
        return sequences if self._split is None else self._split(sequences + self._first)


@dataclass(frozen=True)
class Segment:
    """Domain weights that hold from sample `start_sample` on, until the next segment starts. Not named: weight 0."""

    start_sample: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class _Period:
    """One segment, ready to look up. D domains, in the order of `sequence_counts`."""

    start: int
    shares: Int64Array  # [D]
    table: npt.NDArray[np.int32]  # [PERIOD], domain of each slot, in the order of `shares`
    rank: UInt16Array  # [PERIOD], samples of the same domain earlier in the period
    base: Int64Array  # [D], samples of each domain before `start`

    def counts(self, samples: int) -> Int64Array:
        """[D], samples of each domain before sample `samples` >= start, those of earlier segments too."""
        periods, slots = divmod(samples - self.start, PERIOD)
        begun = np.bincount(self.table[:slots], minlength=len(self.shares))
        return self.base + periods * self.shares + begun


class MixtureOrder:
    """The order of samples over all domains, for domain weights that may change during the run.

    Attributes:
        sequence_counts: whole training sequences of each domain; its order numbers the domains in `locate`.
        seed: the run's seed.
        integer_weights: for each segment, samples of each domain in PERIOD. These are the weights that are trained on.
    """

    def __init__(self, sequence_counts: Mapping[str, int], segments: Sequence[Segment], seed: int) -> None:
        """Builds one period a segment, about 0.04 s each.

        Raises:
            ConfigError: the segments do not start at 0 or their starts do not increase.
            MixtureError: weights that `apportion` refuses, or of a domain that is not in `sequence_counts`.
            StoreError: a domain has a positive weight and no sequence.
        """
        starts = [segment.start_sample for segment in segments]
        if starts[:1] != [0] or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
            problem = f"has segments that start at {starts}"
            raise ConfigError("the weight schedule", problem, "start at 0 and let the starts increase")
        self.sequence_counts = dict(sequence_counts)
        self.seed = seed
        self.integer_weights = [self._apportion(segment.weights) for segment in segments]
        self._starts = np.array(starts, dtype=np.int64)
        self._periods = self._build_periods()
        # A domain that never gets a sample may have none to give.
        used = {name for shares in self.integer_weights for name, share in shares.items() if share > 0}
        self._orders = {name: DomainOrder(name, self.sequence_counts[name], seed) for name in used}

    def locate(self, samples: npt.ArrayLike) -> tuple[Int64Array, Int64Array]:
        """Which sequences these samples are. The cost depends on how many are asked for, not on how far they lie.

        Args:
            samples: [n], int64, not negative, in any order.

        Returns:
            domain: [n], int64, index in the order of `sequence_counts`.
            sequence: [n], int64, index into the domain's sequences. Raises ValueError for a negative sample.
        """
        numbers = _not_negative(samples)
        domains, positions, sequences = (np.empty(len(numbers), dtype=np.int64) for _ in range(3))
        segments = np.searchsorted(self._starts, numbers, side="right") - 1
        for segment in np.unique(segments).tolist():
            chosen = np.flatnonzero(segments == segment)
            period = self._periods[segment]
            periods, slots = np.divmod(numbers[chosen] - period.start, PERIOD)
            domains[chosen] = domain = period.table[slots]
            positions[chosen] = period.base[domain] + periods * period.shares[domain] + period.rank[slots]
        names = list(self.sequence_counts)
        for index in np.unique(domains).tolist():
            chosen = np.flatnonzero(domains == index)
            sequences[chosen] = self._orders[names[index]].sequences(positions[chosen])
        return domains, sequences

    def counts(self, samples_seen: int) -> dict[str, int]:
        """How many of the first `samples_seen` samples are of each domain; closed form, whatever the number.

        Less than one from samples_seen * integer weight / PERIOD in the first segment, less than s + 1 from the sum
        over segments after s changes of weights. Raises ValueError for a negative number.
        """
        segment = int(np.searchsorted(self._starts, _not_negative([samples_seen])[0], side="right")) - 1
        return dict(zip(self.sequence_counts, self._periods[segment].counts(samples_seen).tolist(), strict=True))

    def fingerprint(self, samples: int | None = None) -> str:
        """16 hex digits over everything that decides the first `samples` samples, or with None any; not over the order
        in which domains are listed. Segments that start later do not count, and may change."""
        begun = len(self._starts) if samples is None else max(1, int(np.searchsorted(self._starts, samples)))
        content = {
            "format": FORMAT_VERSION,
            "seed": self.seed,
            "sequence_counts": self.sequence_counts,
            "segments": list(zip(self._starts.tolist(), self.integer_weights, strict=True))[:begun],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _apportion(self, weights: Mapping[str, float]) -> dict[str, int]:
        """Integer weights of one segment for all domains, in the order of `sequence_counts`."""
        for name in weights.keys() - self.sequence_counts.keys():
            problem = f"name {name!r}, which is no domain here"
            raise MixtureError("the domain weights", problem, nearest(name, self.sequence_counts))
        shares = apportion(weights)
        return {name: shares.get(name, 0) for name in self.sequence_counts}

    def _build_periods(self) -> list[_Period]:
        """One for each segment; each takes up every domain's count where the one before leaves it."""
        position = {name: index for index, name in enumerate(self.sequence_counts)}
        periods: list[_Period] = []
        for start, integer_weights in zip(self._starts.tolist(), self.integer_weights, strict=True):
            base = periods[-1].counts(start) if periods else np.zeros(len(position), dtype=np.int64)
            table, rank = build_period(integer_weights)
            domain = [position[name] for name in sorted(position) if integer_weights[name] > 0]
            shares = np.array(list(integer_weights.values()), dtype=np.int64)
            periods.append(_Period(start, shares, np.array(domain, dtype=np.int32)[table], rank, base))
        return periods


def slots_of_rank(seed: int, batch: npt.ArrayLike, batch_size: int, world_size: int, rank: int) -> Int64Array:
    """Which slots of a batch one rank takes: its part of a permutation keyed by (seed, batch).

    Plain striding resonates with the period: with weights (.5, .5) and two ranks, each rank would see one domain only.

    Args:
        batch: one, or [n] for several at once, which is faster than one after the other.

    Returns:
        [batch_size / world_size], int64, from 0 to batch_size - 1; the ranks' slots together are the whole batch.
        For several batches [n, batch_size / world_size].
        Raises ValueError where the batch cannot be dealt out evenly, or there is no such rank.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"a batch of {batch_size} for {world_size} ranks")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    size = batch_size // world_size
    batches = np.asarray(batch, dtype=np.int64)
    places = np.tile(np.arange(rank * size, (rank + 1) * size), batches.size)
    slots = Permutation(batch_size, "slots", seed)(places, np.repeat(batches, size))
    return slots.reshape(*batches.shape, size)


def _not_negative(numbers: npt.ArrayLike) -> Int64Array:
    array = np.asarray(numbers, dtype=np.int64)
    if array.size and array.min() < 0:
        raise ValueError(f"number {array.min()} of an order that starts at 0")
    return array
