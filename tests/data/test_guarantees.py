"""The guarantees of docs/guarantees.md, one test each."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from doge_ds.data.loader import MixtureLoader, ProxyLoader
from doge_ds.data.order import PERIOD, DomainOrder, MixtureOrder, Segment
from doge_ds.data.tokens import TokenStore
from tests.orders import as_weights, assert_each_epoch_once, random_composition
from tests.stores import make_store

exact = settings(deadline=None, max_examples=6, derandomize=True)

# Length of each segment and seed of its weights; more than one period in a segment, and many changes in one period.
segments_of = st.lists(st.tuples(st.integers(1, 90_000), st.integers(0, 2**32)), min_size=1, max_size=5)
several_periods = example(lengths=[(150_000, 1), (80_000, 2)], domains=3, seed=5)
many_changes = example(lengths=[(length, length) for length in (1, 2, 3, 1, 997, 5, 2, 10_001)], domains=9, seed=6)


@dataclass(frozen=True)
class Run:
    """A run whose weights change, and all its samples: domain and sequence of each."""

    order: MixtureOrder
    seed: int
    starts: list[int]
    compositions: list[dict[str, int]]
    domains: np.ndarray
    sequences: np.ndarray


def run_of(lengths: Sequence[tuple[int, int]], domains: int, seed: int) -> Run:
    compositions = [random_composition(domains, weight_seed) for _, weight_seed in lengths]
    ends = np.cumsum([length for length, _ in lengths]).tolist()
    starts = [0, *ends[:-1]]
    sizes = np.random.default_rng(seed).integers(1, 5000, domains).tolist()
    counts = dict(zip(compositions[0], sizes, strict=True))
    segments = [Segment(start, as_weights(integers)) for start, integers in zip(starts, compositions, strict=True)]
    order = MixtureOrder(counts, segments, seed)
    assert order.integer_weights == compositions
    return Run(order, seed, starts, compositions, *order.locate(np.arange(ends[-1])))


@exact
@several_periods
@many_changes
@given(lengths=segments_of, domains=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_counts_are_exact_at_every_prefix(lengths: list[tuple[int, int]], domains: int, seed: int) -> None:
    """Less than one sample off in the first segment, and less than s + 1 after s changes; in integers."""
    run = run_of(lengths, domains, seed)
    total = len(run.domains)
    for index, name in enumerate(run.order.sequence_counts):
        due = np.zeros(total + 1, dtype=np.int64)  # in units of 1 / PERIOD sample, after each sample
        changes = np.zeros(total + 1, dtype=np.int64)
        for number, (start, integers) in enumerate(zip(run.starts, run.compositions, strict=True)):
            due[start + 1 :] = due[start] + integers[name] * np.arange(1, total - start + 1)
            changes[start + 1 :] = number
        error = np.abs(np.concatenate([[0], np.cumsum(run.domains == index)]) * PERIOD - due)
        assert (error < PERIOD * (changes + 1)).all()

    for samples_seen in {0, 1, total // 3, *run.starts, *(start + 1 for start in run.starts), total}:
        expected = np.bincount(run.domains[:samples_seen], minlength=domains).tolist()
        assert list(run.order.counts(samples_seen).values()) == expected


@exact
@several_periods
@many_changes
@given(lengths=segments_of, domains=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_each_sequence_comes_once_an_epoch(lengths: list[tuple[int, int]], domains: int, seed: int) -> None:
    run = run_of(lengths, domains, seed)
    for index, count in enumerate(run.order.sequence_counts.values()):
        assert_each_epoch_once(run.sequences[run.domains == index], count)


@exact
@several_periods
@many_changes
@given(lengths=segments_of, domains=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_a_change_of_weights_neither_loses_nor_repeats(lengths: list[tuple[int, int]], domains: int, seed: int) -> None:
    """Whatever the weights were, a domain's samples are the first of its own order, in that order."""
    run = run_of(lengths, domains, seed)
    for index, (name, count) in enumerate(run.order.sequence_counts.items()):
        found = run.sequences[run.domains == index]
        assert np.array_equal(found, DomainOrder(name, count, seed).sequences(np.arange(len(found))))


@settings(exact, max_examples=20)
@given(
    domains=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    name=st.text("abcdefghijklmnopqrstuvwxyz0123456789_.", min_size=1, max_size=12),
    share=st.integers(9, 60_000),
    place=st.integers(0, 9),
)
def test_a_domain_more_leaves_the_order_of_the_others(
    domains: int, seed: int, name: str, share: int, place: int
) -> None:
    """Also where it is listed first and takes most of the samples."""
    run = run_of([(20_000, seed)], domains, seed)
    assume(name not in run.order.sequence_counts)
    integers = {other: max(1, integer * (PERIOD - share) // PERIOD) for other, integer in run.compositions[0].items()}
    integers[name] = PERIOD - sum(integers.values())
    counts = list(run.order.sequence_counts.items())
    counts.insert(place, (name, 77))
    larger = MixtureOrder(dict(counts), [Segment(0, as_weights(integers))], seed)
    found, sequences = larger.locate(np.arange(20_000))
    compared = 0
    for index, other in enumerate(run.order.sequence_counts):
        before = run.sequences[run.domains == index]
        after = sequences[found == list(larger.sequence_counts).index(other)]
        common = min(len(before), len(after))
        assert np.array_equal(before[:common], after[:common])
        compared += common
    assert compared > 1000


LENGTH = 8
WINDOWS = {"books": 40, "arxiv": 13, "cc": 95, "github": 7}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Random tokens: two equal windows are as good as impossible."""
    random = np.random.default_rng(0)
    ids = {name: random.integers(0, 60_000, count * LENGTH + 3) for name, count in WINDOWS.items()}
    return make_store(tmp_path_factory.mktemp("guarantees") / "store", ids, vocabulary_size=60_000)


def rows(micro_batches: Sequence[torch.Tensor], size: int) -> list[tuple[int, ...]]:
    """The windows of micro-batches of this size, in order."""
    assert {tuple(micro_batch.shape) for micro_batch in micro_batches} == {(size, LENGTH)}
    return [tuple(row) for micro_batch in micro_batches for row in micro_batch.tolist()]


@functools.cache
def a_base_order() -> MixtureOrder:
    weights = [{"books": 0.4, "arxiv": 0.3, "cc": 0.2, "github": 0.1}, {"books": 0.1, "arxiv": 0.1, "cc": 0.8}]
    return MixtureOrder(WINDOWS, [Segment(0, weights[0]), Segment(10**6, weights[1])], seed=1)


ANY_RANKS = {
    "world_size": st.integers(1, 7),
    "micro": st.integers(1, 4),
    "accumulation": st.integers(1, 4),
    "step": st.integers(0, 10**9),
}


@settings(exact, max_examples=20)
@given(**ANY_RANKS)
def test_a_base_batch_is_the_same_on_any_ranks_and_micro_batches(
    store: TokenStore, world_size: int, micro: int, accumulation: int, step: int
) -> None:
    """All ranks together have the samples that the order says, whose windows and domains are the store's."""
    order = a_base_order()
    size = world_size * micro * accumulation
    domains, sequences = order.locate(step * size + np.arange(size))
    tokens = [np.asarray(store.tokens(name, "train")) for name in WINDOWS]
    wanted = [
        (domain, *tokens[domain][sequence * LENGTH : (sequence + 1) * LENGTH].tolist())
        for domain, sequence in zip(domains.tolist(), sequences.tolist(), strict=True)
    ]
    found: list[tuple[int, ...]] = []
    for rank in range(world_size):
        with MixtureLoader(store, order, size, micro, LENGTH, rank, world_size) as loader:
            batch = next(loader.batches(step))
        assert len(batch.micro_batches) == accumulation
        windows = rows([tokens for tokens, _ in batch.micro_batches], micro)
        of_windows = torch.cat([domains for _, domains in batch.micro_batches]).tolist()
        found += [(domain, *window) for domain, window in zip(of_windows, windows, strict=True)]
    assert sorted(found) == sorted(wanted)


@settings(exact, max_examples=20)
@given(mix=st.booleans(), per_step=st.integers(1, 3), update_every=st.integers(1, 3), **ANY_RANKS)
def test_a_proxy_step_is_the_same_on_any_ranks_and_micro_batches(
    store: TokenStore,
    mix: bool,
    per_step: int,
    update_every: int,
    world_size: int,
    micro: int,
    accumulation: int,
    step: int,
) -> None:
    """Rank after rank, each row has the sequences that one rank alone has, in their order."""
    size = world_size * micro * accumulation

    def batches(micro_batch_size: int, rank: int, ranks: int) -> list[tuple[str, list[tuple[int, ...]]]]:
        options: dict[str, Any] = {"domains_per_step": per_step, "update_every": update_every}
        with ProxyLoader(
            store, ["books", "arxiv", "cc"], ["github"], mix, size, micro_batch_size, LENGTH, 1, rank, ranks, **options
        ) as loader:
            return [(name, rows(found, micro_batch_size)) for name, found in loader.domain_batches(step)]

    parts = [batches(micro, rank, world_size) for rank in range(world_size)]
    together = [(row[0][0], [window for _, windows in row for window in windows]) for row in zip(*parts, strict=True)]
    assert together == batches(size, 0, 1)


def test_the_first_10000_samples_are_frozen() -> None:
    """Who changes this hash changes what resumed runs train on, and must raise FORMAT_VERSION."""
    counts = {"cc": 2003, "arxiv": 389, "books": 1, "github": 71, "wikipedia": 997}
    weights = [(0.523, 0.267, 0.001, 0.083, 0.126), (0.11, 0.0, 0.17, 0.5, 0.22), (0.2, 0.2, 0.2, 0.2, 0.2)]
    segments = [
        Segment(start, dict(zip(counts, of_segment, strict=True)))
        for start, of_segment in zip((0, 3001, 7777), weights, strict=True)
    ]
    samples = MixtureOrder(counts, segments, seed=20240711).locate(np.arange(10_000))
    content = b"".join(part.astype("<i8").tobytes() for part in samples)
    assert hashlib.sha256(content).hexdigest() == "6c15b1c299fb327f59c2ae9dfb5363d1a6171e744ccdb61c5538f33f431efba6"
