"""A rank's batches: the order of samples and the token store, made into tensors by a thread that works ahead.

    with ProxyLoader(store, ["arxiv", "books"], [], mix=True, sequences_per_domain=64, micro_batch_size=8,
                     sequence_length=512, seed=1, rank=0, world_size=4) as loader:
        for name, micro_batches in loader.domain_batches(step): ...

Any step can be asked for at any time, and step n holds the same sequences on any number of ranks: a run resumes from
the step alone. Ranks and their number are arguments; nothing here talks to other processes.
"""

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from doge_ds.data.batches import BatchSizes, check_cut
from doge_ds.data.order import DomainOrder, MixtureOrder, Part, slots_of_rank
from doge_ds.data.permutation import FORMAT_VERSION, Int64Array
from doge_ds.data.subsets import DomainSubsets
from doge_ds.data.tokens import TokenStore
from doge_ds.data.windows import gather, micro_batches, training_windows
from doge_ds.errors import RunError

MIX_ROW = "<mix>"
"""The row of the proxy's target `mix`. No domain can be called so."""

LOCATED_TOGETHER = 16384  # samples of a rank: to locate 32 of 7 domains takes 1.6 ms, 16384 take 4.8 ms
READ_TOGETHER = 256  # samples of a rank, or a batch where that is more: the thread's hand-over takes 0.05 ms each time

DomainBatches = list[tuple[str, list[torch.Tensor]]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class MixtureBatch:
    """One rank's part of one batch of the base model.

    Attributes:
        number: the batch, which is the step.
        micro_batches: pairs of tokens, [micro_batch_size, sequence_length], int64, and of the domain of each sequence,
            [micro_batch_size], int64, in the order of the `sequence_counts` of the MixtureOrder.
    """

    number: int
    micro_batches: list[tuple[torch.Tensor, torch.Tensor]]


class _Loader(ABC, Generic[Made]):
    """What both loaders share: the thread that prepares the next batches, and the state that a checkpoint keeps."""

    def __init__(self, ahead: int, sizes: BatchSizes) -> None:
        """Args: how many batches, or blocks of them, to prepare ahead; the sequences of a step."""
        self._ahead = ahead
        self._sizes = sizes
        self._pending: dict[int, Future[Made]] = {}
        # One worker: two give fewer batches a second, since they wait for Python's lock and for memory. At exit Python
        # waits for what is prepared ahead at most: milliseconds.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps keeps: {"samples_seen": int, "fingerprint": 16 hex digits}.

        The fingerprint covers the store, the order of the samples so far and how many a step takes. It does not cover
        the number of ranks, the micro-batch size, or mixtures and batches of later steps: these may change when a run
        resumes.
        """
        samples = self.samples(step)
        return {"samples_seen": samples, "fingerprint": self._fingerprint(samples)}

    @abstractmethod
    def _identity(self, samples: int) -> list[Any]:
        """JSON of all that decides what the first `samples` sequences are."""

    def _fingerprint(self, samples: int) -> str:
        return hashlib.sha256(json.dumps([FORMAT_VERSION, *self._identity(samples)]).encode()).hexdigest()[:16]

    @abstractmethod
    def samples(self, steps: int) -> int:
        """Sequences in the first `steps` steps, over all ranks."""

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises RunError where `state` is of other data, another order or another number of samples a step, or of a
        step before the last change of that number, which this loader cannot give again."""
        samples = state.get("samples_seen", 0)
        now = self._fingerprint(samples)
        if (found := state.get("fingerprint")) != now:
            raise RunError(
                "the checkpoint",
                f"was made with other data or another order of samples ({found}, now {now})",
                "restore the token store, data, seed and batch size of the run, or start a new one with --output",
            )
        if samples < self.samples(self._sizes.last.from_step):
            start, size = self._sizes.last
            problem = f"is older than the change to batches of {size} sequences, from step {start} on"
            raise RunError("the checkpoint", problem, "give --change_batch to change them from this checkpoint on")

    def close(self) -> None:
        """End the thread. The loader gives no batches afterwards."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_step(self, step: int) -> None:
        """Raises ValueError for a step before the stage of batch sizes that this loader is for, the last."""
        if step < self._sizes.last.from_step:
            raise ValueError(f"batch {step} of a loader from batch {self._sizes.last.from_step} on")

    @abstractmethod
    def _make(self, number: int) -> Made:
        """Batch `number`, or a block of them; runs in the thread."""

    def _get(self, number: int) -> Made:
        """Batch `number`, and the next ones set to work. What went wrong in the thread is raised here."""
        wanted = range(number, number + 1 + self._ahead)
        for skipped in self._pending.keys() - set(wanted):  # the caller went somewhere else
            self._pending.pop(skipped).cancel()
        for following in wanted:
            if following not in self._pending:
                self._pending[following] = self._thread.submit(self._make, following)
        return self._pending.pop(number).result()


@dataclass(frozen=True)
class _Row:
    """One gradient of the proxy. With S sources, its sequence t is at position t // S of the order of source t % S."""

    name: str
    orders: list[DomainOrder]
    windows: list[npt.NDArray[Any]]


class ProxyLoader(_Loader[DomainBatches]):
    """The proxy's batches: each row of a step gets `sequences_per_domain` sequences, over all ranks together, or what
    the last of its stages says where they changed in mid-run; steps of earlier stages are counted, not given.

    Rows are the train domains; then the target domains that are not train domains; then, with `mix`, MIX_ROW, drawn
    evenly from all train domains. Its sequences are reserved for the whole run (`DomainOrder`), so no other row ever
    has them (the authors' universal runs reserve a slice likewise). A step has all train domains, or with
    `domains_per_step` a subset; the other rows come in the steps that update the weights. A row goes on where its last
    step ended, whenever that was.

    Attributes:
        row_names: the rows' names, in the order of `domain_batches`.
    """

    def __init__(
        self,
        store: TokenStore,
        train_domains: Sequence[str],
        target_domains: Sequence[str],
        mix: bool,
        sequences_per_domain: int | BatchSizes,
        micro_batch_size: int,
        sequence_length: int,
        seed: int,
        rank: int,
        world_size: int,
        domains_per_step: int | None = None,
        update_every: int = 1,
        first_update: int = 0,
    ) -> None:
        """Args: see the run configuration; `sequence_length` in tokens; `rank` from 0 to world_size - 1.

        Raises:
            StoreError: a domain is not in the store, or has too few sequences.
            ValueError: `sequences_per_domain` is no multiple of ranks x micro-batch, there is no such rank, or there
                are fewer train domains than `domains_per_step`.
        """
        sizes = BatchSizes.of(sequences_per_domain)
        check_cut(sizes.last.sequences, micro_batch_size, rank, world_size)
        self._micro_batch_size = micro_batch_size
        self._update_every, self._first_update = update_every, first_update
        self._subsets = DomainSubsets(len(train_domains), domains_per_step or len(train_domains), seed)
        share = sizes.last.sequences // world_size
        self._of_rank = np.arange(rank * share, (rank + 1) * share)

        def row(name: str, domains: Sequence[str], part: Part) -> _Row:
            windows = [training_windows(store, domain, sequence_length) for domain in domains]
            counts = [len(window) for window in windows]
            orders = [
                DomainOrder(domain, count, seed, part, len(train_domains))
                for domain, count in zip(domains, counts, strict=True)
            ]
            return _Row(name, orders, windows)

        self._rows = [row(name, [name], "own" if mix else "all") for name in train_domains]
        self._rows += [row(name, [name], "all") for name in target_domains if name not in train_domains]
        if mix:
            self._rows.append(row(MIX_ROW, train_domains, "reserved"))
        self.row_names = [row.name for row in self._rows]
        self._data = [store.fingerprint(), sequence_length, seed, self.row_names, len(train_domains)]
        appearances = [self._appearances(start) for start, _ in sizes.stages]
        # Sequences of a row before a step of a stage: its appearances before it * the stage's size + this.
        self._offsets = [[0] * len(self._rows)]
        for number, (before, after) in enumerate(itertools.pairwise(sizes.stages), start=1):
            lost = before.sequences - after.sequences
            self._offsets.append([a + b * lost for a, b in zip(self._offsets[-1], appearances[number], strict=True)])
        super().__init__(1, sizes)

    def _identity(self, samples: int) -> list[Any]:
        sizes = self._sizes.identity(samples, self.samples)
        return [*self._data, sizes, self._subsets.per_step, self._update_every, self._first_update]

    def is_update(self, step: int) -> bool:
        """Whether the weights are updated in this step, so that it has the targets' rows: the last of every
        `update_every`, so that steps 10, 20, ... are, when these are logged."""
        return step >= self._first_update and (step - self._first_update + 1) % self._update_every == 0

    def domain_batches(self, step: int) -> DomainBatches:
        """This rank's part of one step: for each row its name and micro-batches, while step + 1 is being prepared.

        Rank r takes sequences r * n / W to (r + 1) * n / W of the n that each row has.

        Returns:
            (row name, [micro-batch: [micro_batch_size, sequence_length], int64]) for each row of the step, in order.
        """
        self._check_step(step)
        return self._get(step)

    def samples(self, steps: int) -> int:
        """Sequences in the first `steps` steps, over all ranks."""
        return sum(self._read_before(steps))

    def needs(self, steps: int) -> dict[str, int]:
        """Sequences of each row in the first `steps` steps, over all ranks."""
        return dict(zip(self.row_names, self._read_before(steps), strict=True))

    def available(self) -> dict[str, int]:
        """Sequences that each row can have before one comes again; MIX_ROW's smallest source decides for all."""
        return {row.name: len(row.orders) * min(order.sequence_count for order in row.orders) for row in self._rows}

    def _appearances(self, step: int) -> list[int]:
        """How often each row came in the steps before this one."""
        updates = max(0, step - self._first_update) // self._update_every
        return [*self._subsets.appearances(step), *[updates] * (len(self._rows) - self._subsets.count)]

    def _read_before(self, step: int) -> list[int]:
        """Sequences of each row in the steps before this one, over all ranks."""
        stage = max(bisect_right([start for start, _ in self._sizes.stages], step) - 1, 0)
        size = self._sizes.stages[stage].sequences
        return [count * size + more for count, more in zip(self._appearances(step), self._offsets[stage], strict=True)]

    def _make(self, number: int) -> DomainBatches:
        others = range(self._subsets.count, len(self._rows)) if self.is_update(number) else []
        before = self._read_before(number)
        return [
            (self._rows[row].name, self._read(self._rows[row], before[row] + self._of_rank))
            for row in (*self._subsets.domains(number), *others)
        ]

    def _read(self, row: _Row, numbers: Int64Array) -> list[torch.Tensor]:
        positions, sources = np.divmod(numbers, len(row.orders))
        sequences = np.empty_like(positions)
        for source, order in enumerate(row.orders):
            chosen = sources == source
            sequences[chosen] = order.sequences(positions[chosen])
        return micro_batches(gather(row.windows, sources, sequences), self._micro_batch_size)


class MixtureLoader(_Loader[list[MixtureBatch]]):
    """The base model's batches: batch b holds samples b * global_batch_size and on of a MixtureOrder, or goes on where
    batch b - 1 ended, where the size changed in mid-run; batches of earlier stages are counted, not given."""

    def __init__(
        self,
        store: TokenStore,
        order: MixtureOrder,
        global_batch_size: int | BatchSizes,
        micro_batch_size: int,
        sequence_length: int,
        rank: int,
        world_size: int,
    ) -> None:
        """Args: see the run configuration; `sequence_length` in tokens; `rank` from 0 to world_size - 1.

        Raises:
            StoreError: a domain of the order is not in the store.
            ValueError: `global_batch_size` is no multiple of ranks x micro-batch, there is no such rank, or the order
                was made for other numbers of sequences than the store has.
        """
        sizes = BatchSizes.of(global_batch_size)
        check_cut(sizes.last.sequences, micro_batch_size, rank, world_size)
        self._order = order
        self._micro_batch_size = micro_batch_size
        self._rank = rank
        self._world_size = world_size
        self._windows = [training_windows(store, domain, sequence_length) for domain in order.sequence_counts]
        if (found := [len(windows) for windows in self._windows]) != list(order.sequence_counts.values()):
            raise ValueError(f"the order is for {order.sequence_counts} sequences, the store has {found}")
        self._store, self._sequence_length = store.fingerprint(), sequence_length
        of_rank = sizes.last.sequences // world_size
        self._batches_a_block = max(1, READ_TOGETHER // of_rank)
        self._blocks_located = max(1, LOCATED_TOGETHER // (of_rank * self._batches_a_block))
        self._located = lru_cache(maxsize=2)(self._locate)
        super().__init__(2, sizes)

    def _identity(self, samples: int) -> list[Any]:
        sizes = self._sizes.identity(samples, self.samples)
        return [self._store, self._sequence_length, self._order.fingerprint(samples), sizes]

    def samples(self, steps: int) -> int:
        """Sequences in the first `steps` steps, over all ranks."""
        return self._sizes.samples(steps)

    def batches(self, first_batch: int) -> Iterator[MixtureBatch]:
        """This rank's part of batch `first_batch` and of all that follow, without end, prepared ahead."""
        self._check_step(first_batch)
        first_block, done = divmod(first_batch - self._sizes.last.from_step, self._batches_a_block)
        blocks = map(self._get, itertools.count(first_block))
        return itertools.islice(itertools.chain.from_iterable(blocks), done, None)

    def _make(self, number: int) -> list[MixtureBatch]:
        """The batches of one block; blocks are counted from the first batch of the last stage on."""
        together, place = divmod(number, self._blocks_located)
        domains, sequences = (of_blocks[place] for of_blocks in self._located(together))
        parts = (gather(self._windows, domains, sequences), torch.from_numpy(domains))
        pairs = list(zip(*(micro_batches(part, self._micro_batch_size) for part in parts), strict=True))
        first = self._sizes.last.from_step + number * self._batches_a_block
        count = len(pairs) // self._batches_a_block
        return [
            MixtureBatch(first + batch, pairs[batch * count : (batch + 1) * count])
            for batch in range(self._batches_a_block)
        ]

    def _locate(self, together: int) -> tuple[Int64Array, Int64Array]:
        """Domain and sequence of this rank's samples in neighbouring blocks, each [blocks, samples of a block]."""
        count = self._blocks_located * self._batches_a_block
        start, size = self._sizes.last
        of_stage = together * count + np.arange(count)
        slots = slots_of_rank(self._order.seed, start + of_stage, size, self._world_size, self._rank)
        found = self._order.locate((self.samples(start) + of_stage[:, np.newaxis] * size + slots).ravel())
        domains, sequences = (part.reshape(self._blocks_located, -1) for part in found)
        return domains, sequences
