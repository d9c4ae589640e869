"""Batches that change in mid-run: counted in closed form; the loaders lose and repeat nothing across the changes."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from doge_ds.data.batches import BatchSizes, BatchStage
from doge_ds.data.loader import MixtureLoader, ProxyLoader
from doge_ds.data.order import MixtureOrder, Segment
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import RunError
from tests.stores import make_store, windows_by_tokens

LENGTH = 8
WINDOWS = {"books": 40, "arxiv": 13, "cc": 95, "github": 7}
Where = tuple[str, int]

# Steps of each stage and what the batch is a multiple of; (steps, size).
changes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4)
exact = settings(deadline=None, max_examples=25, derandomize=True)


def sizes_of(lengths: list[tuple[int, int]], unit: int = 1) -> BatchSizes:
    ends = np.cumsum([steps for steps, _ in lengths]).tolist()
    starts = [0, *ends[:-1]]
    return BatchSizes(tuple(BatchStage(start, unit * size) for start, (_, size) in zip(starts, lengths, strict=True)))


def until(sizes: BatchSizes, number: int) -> BatchSizes:
    """As a run knew them in this stage."""
    return BatchSizes(sizes.stages[: number + 1])


@given(changes)
def test_samples_are_the_sum_of_the_steps_sizes(lengths: list[tuple[int, int]]) -> None:
    sizes = sizes_of(lengths)
    of_steps = [size for steps, size in lengths for _ in range(steps)]
    of_steps += [lengths[-1][1]] * 5
    assert [sizes.at(step) for step in range(len(of_steps))] == of_steps
    assert [sizes.samples(steps) for steps in range(len(of_steps) + 1)] == [0, *np.cumsum(of_steps).tolist()]
    assert BatchSizes.from_json(json.loads(json.dumps(sizes.as_json()))) == sizes


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_one_size_is_a_multiplication(steps: int, size: int) -> None:
    assert BatchSizes.of(size).samples(steps) == steps * size
    assert BatchSizes.of(size).at(steps) == size
    assert BatchSizes.of(BatchSizes.of(size)) == BatchSizes.of(size)


@given(changes, st.integers(0, 40), st.integers(1, 6))
def test_a_change_leaves_what_is_done(lengths: list[tuple[int, int]], step: int, size: int) -> None:
    sizes = BatchSizes.of(lengths[0][1])
    for start, of_stage in sizes_of(lengths).stages[1:]:  # as a run makes them
        sizes = sizes.changed_from(start, of_stage)
    changed = sizes.changed_from(step, size)
    assert [changed.samples(steps) for steps in range(step + 1)] == [sizes.samples(steps) for steps in range(step + 1)]
    assert {changed.at(later) for later in range(step, 60)} == {size}
    assert all(one.sequences != other.sequences for one, other in itertools.pairwise(changed.stages))
    if step > 0:
        assert changed.identity(sizes.samples(step), changed.samples) == sizes.identity(
            sizes.samples(step), sizes.samples
        )


@pytest.mark.parametrize(
    "values",
    [
        [],
        [{"from_step": 1, "sequences": 8}],
        [{"from_step": 0, "sequences": 8}, {"from_step": 0, "sequences": 16}],
        [{"from_step": 0, "sequences": 8}, {"from_step": 9, "sequences": 16}, {"from_step": 4, "sequences": 8}],
        [{"from_step": 0, "sequences": 0}],
        [{"from_step": 0, "sequences": 8.0}],
        [{"from_step": 0, "sequences": "8"}],
        [{"from_step": 0}],
        [8],
    ],
)
def test_what_are_no_stages_is_refused(values: Any) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        BatchSizes.from_json(values)


@pytest.fixture(scope="module")
def ids() -> dict[str, np.ndarray]:
    """Random tokens; two equal windows are as good as impossible."""
    random = np.random.default_rng(0)
    return {name: random.integers(0, 60_000, count * LENGTH) for name, count in WINDOWS.items()}


@pytest.fixture(scope="module")
def store(ids: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("batches") / "store", ids, vocabulary_size=60_000)


@pytest.fixture(scope="module")
def where(ids: dict[str, np.ndarray]) -> dict[tuple[int, ...], Where]:
    return windows_by_tokens(ids, WINDOWS, LENGTH)


@exact
@example(lengths=[(5, 1), (7, 3), (4, 2)], world_size=2, together=6)  # blocks of one batch, and of several
@given(lengths=changes, world_size=st.sampled_from([1, 2, 3]), together=st.sampled_from([1, 24, 256]))
def test_a_base_reads_one_order_across_changes(
    store: TokenStore,
    where: dict[tuple[int, ...], Where],
    lengths: list[tuple[int, int]],
    world_size: int,
    together: int,
) -> None:
    """Every batch has the samples after those of the batch before it, whatever the ranks; each exactly once."""
    sizes, names = sizes_of(lengths, unit=6), list(WINDOWS)
    segments = [Segment(0, {"books": 0.4, "arxiv": 0.3, "cc": 0.2, "github": 0.1}), Segment(50, {"cc": 1.0})]
    order = MixtureOrder(WINDOWS, segments, seed=3)
    step = read = 0
    for number, (steps, size) in enumerate(lengths):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("doge_ds.data.loader.READ_TOGETHER", together)
            patch.setattr("doge_ds.data.loader.LOCATED_TOGETHER", 3 * together)
            loaders = [
                MixtureLoader(store, order, until(sizes, number), 1, LENGTH, rank, world_size)
                for rank in range(world_size)
            ]
        streams = [loader.batches(step) for loader in loaders]
        for _ in range(steps):
            found = []
            for stream in streams:
                batch = next(stream)
                assert batch.number == step
                for tokens, domains in batch.micro_batches:
                    window = where[tuple(tokens[0].tolist())]
                    assert window[0] == names[int(domains[0])]
                    found.append(window)
            due = order.locate(np.arange(read, read + 6 * size))
            wanted = [
                (names[domain], sequence) for domain, sequence in zip(*(part.tolist() for part in due), strict=True)
            ]
            assert sorted(found) == sorted(wanted)
            step, read = step + 1, read + 6 * size
            assert loaders[0].samples(step) == read
        for loader in loaders:
            loader.close()


@exact
@example(lengths=[(4, 2), (3, 5), (6, 1)], world_size=3, mix=True, per_step=2, update_every=2)
@given(
    lengths=changes,
    world_size=st.sampled_from([1, 2, 3]),
    mix=st.booleans(),
    per_step=st.sampled_from([2, 3]),
    update_every=st.sampled_from([1, 3]),
)
def test_a_row_of_the_proxy_goes_on_across_changes(
    store: TokenStore,
    where: dict[tuple[int, ...], Where],
    lengths: list[tuple[int, int]],
    world_size: int,
    mix: bool,
    per_step: int,
    update_every: int,
) -> None:
    """What each row has read is the prefix of its order, as one loader that never changes reads it."""

    def loader_of(sizes: int | BatchSizes, rank: int = 0, world_size: int = 1, **options: Any) -> ProxyLoader:
        domains = ["books", "arxiv", "cc"]
        return ProxyLoader(store, domains, ["github"], mix, sizes, 1, LENGTH, 5, rank, world_size, **options)

    sizes = sizes_of(lengths, unit=6)
    seen: dict[str, list[Where]] = {}
    step = 0
    for number, (steps, _) in enumerate(lengths):
        known = until(sizes, number)
        loaders = [
            loader_of(known, rank, world_size, domains_per_step=per_step, update_every=update_every, first_update=1)
            for rank in range(world_size)
        ]
        seen = seen or {name: [] for name in loaders[0].row_names}
        for _ in range(steps):
            for of_ranks in zip(*(loader.domain_batches(step) for loader in loaders), strict=True):
                for name, micro_batches in of_ranks:
                    seen[name] += [where[tuple(tokens[0].tolist())] for tokens in micro_batches]
            step += 1
            assert loaders[0].needs(step) == {name: len(windows) for name, windows in seen.items()}
            assert loaders[0].samples(step) == sum(map(len, seen.values()))
        for loader in loaders:
            loader.close()
    longest = max(map(len, seen.values()))
    with loader_of(longest) as plain:
        for name, micro_batches in plain.domain_batches(0):
            assert [where[tuple(tokens[0].tolist())] for tokens in micro_batches][: len(seen[name])] == seen[name]


def both(store: TokenStore, sizes: int | BatchSizes) -> list[MixtureLoader | ProxyLoader]:
    order = MixtureOrder(WINDOWS, [Segment(0, dict.fromkeys(WINDOWS, 0.25))], seed=1)
    return [
        MixtureLoader(store, order, sizes, 2, LENGTH, 0, 1),
        ProxyLoader(store, ["books", "cc"], [], False, sizes, 2, LENGTH, 1, 0, 1, update_every=2),
    ]


def test_every_checkpoint_fits_the_record(store: TokenStore) -> None:
    """Those before a change have the state that they had; those after it know of it."""
    changed = BatchSizes((BatchStage(0, 8), BatchStage(5, 12), BatchStage(9, 4)))
    for never, once, twice in zip(both(store, 8), both(store, until(changed, 1)), both(store, changed), strict=True):
        with never, once, twice:
            assert [twice.state(step) for step in range(6)] == [never.state(step) for step in range(6)]
            assert [twice.state(step) for step in range(10)] == [once.state(step) for step in range(10)]
            assert twice.state(10)["fingerprint"] != once.state(10)["fingerprint"]
            once.check_state(json.loads(json.dumps(never.state(5))))
            once.check_state(once.state(7))
            with pytest.raises(RunError, match="another order of samples"):
                once.check_state(never.state(6))
            with pytest.raises(RunError, match="another order of samples"):
                never.check_state(once.state(6))


def test_a_checkpoint_from_before_the_change_is_refused_with_the_way_on(store: TokenStore, tmp_path: Path) -> None:
    changed = BatchSizes((BatchStage(0, 8), BatchStage(5, 12)))
    for loader in both(store, changed):
        with loader:
            for step in (0, 4):
                message = r"older than the change to batches of 12 sequences, from step 5 on; give --change_batch"
                with pytest.raises(RunError, match=message):
                    loader.check_state(loader.state(step))
            with pytest.raises(ValueError, match="batch 4 of a loader from batch 5 on"):
                loader.batches(4) if isinstance(loader, MixtureLoader) else loader.domain_batches(4)
    with pytest.raises(ValueError, match="12 sequences for 1 ranks in micro-batches of 5"):
        MixtureLoader(store, MixtureOrder(WINDOWS, [Segment(0, {"cc": 1.0})], 1), changed, 5, LENGTH, 0, 1)
