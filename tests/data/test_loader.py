"""Loaders: the right windows of the store, and a thread that works ahead; see also test_guarantees.py."""

import functools
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_ds.data.loader import MIX_ROW, MixtureBatch, MixtureLoader, ProxyLoader
from doge_ds.data.order import MixtureOrder, Segment
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import RunError, StoreError
from tests.stores import make_store, windows_by_tokens

LENGTH = 8
WINDOWS = {"books": 40, "arxiv": 13, "cc": 95, "github": 7}
Where = tuple[str, int]


@pytest.fixture(scope="module")
def ids() -> dict[str, np.ndarray]:
    """Random tokens, each domain ending in an unfinished window; two equal windows are as good as impossible."""
    random = np.random.default_rng(0)
    return {name: random.integers(0, 60_000, count * LENGTH + 3) for name, count in WINDOWS.items()}


@pytest.fixture(scope="module")
def store(ids: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("loader") / "store", ids, vocabulary_size=60_000)


@pytest.fixture(scope="module")
def where(ids: dict[str, np.ndarray]) -> dict[tuple[int, ...], Where]:
    return windows_by_tokens(ids, WINDOWS, LENGTH)


def proxy(store: TokenStore, rank: int = 0, world_size: int = 1, micro: int = 2, **changed: Any) -> ProxyLoader:
    options: dict[str, Any] = {
        "train_domains": ["books", "arxiv", "cc"],
        "target_domains": [],
        "mix": False,
        "sequences_per_domain": 16,
        "sequence_length": LENGTH,
        "seed": 1,
    }
    options |= changed
    return ProxyLoader(store, micro_batch_size=micro, rank=rank, world_size=world_size, **options)


def mixture(store: TokenStore, rank: int = 0, world_size: int = 1, micro: int = 2, **changed: Any) -> MixtureLoader:
    options: dict[str, Any] = {"order": an_order(), "global_batch_size": 32, "sequence_length": LENGTH} | changed
    return MixtureLoader(store, micro_batch_size=micro, rank=rank, world_size=world_size, **options)


@functools.cache
def an_order(seed: int = 1) -> MixtureOrder:
    segments = [
        Segment(0, {"books": 0.4, "arxiv": 0.3, "cc": 0.2, "github": 0.1}),
        Segment(100, {"books": 0.1, "arxiv": 0.1, "cc": 0.8}),
    ]
    return MixtureOrder(WINDOWS, segments, seed)


def found(micro_batches: list[torch.Tensor], where: dict[tuple[int, ...], Where]) -> list[Where]:
    """The windows of some micro-batches, in order; a KeyError where tokens are no window of the store."""
    return [where[tuple(row)] for micro_batch in micro_batches for row in micro_batch.tolist()]


# The proxy


@pytest.mark.parametrize("mix", [False, True])
def test_every_row_of_the_proxy_is_its_own_windows(
    store: TokenStore, where: dict[tuple[int, ...], Where], mix: bool
) -> None:
    with proxy(store, 1, 2, mix=mix, target_domains=["arxiv", "github"]) as loader:
        batches = loader.domain_batches(3)
        assert [name for name, _ in batches] == loader.row_names
    assert loader.row_names == ["books", "arxiv", "cc", "github"] + [MIX_ROW] * mix
    for name, micro_batches in batches:
        assert [tuple(micro_batch.shape) for micro_batch in micro_batches] == [(2, LENGTH)] * 4
        assert {micro_batch.dtype for micro_batch in micro_batches} == {torch.int64}
        domains = {domain for domain, _ in found(micro_batches, where)}
        assert domains == ({"books", "arxiv", "cc"} if name == MIX_ROW else {name})


def test_proxy_epochs_visit_every_window_once(store: TokenStore, where: dict[tuple[int, ...], Where]) -> None:
    with proxy(store, sequences_per_domain=10) as loader:
        windows = {name: [] for name in loader.row_names}
        for step in range(39):
            for name, micro_batches in loader.domain_batches(step):
                windows[name] += found(micro_batches, where)
        available, needs = loader.available(), loader.needs(39)
    for name, seen in windows.items():
        count = WINDOWS[name]
        everything = {(name, index) for index in range(count)}
        for start in range(0, len(seen) - count + 1, count):
            assert set(seen[start : start + count]) == everything
        assert available[name] == count
        assert len(seen) == needs[name] == 390


def test_the_mix_is_even_and_disjoint_from_all_training(store: TokenStore, where: dict[tuple[int, ...], Where]) -> None:
    trained: set[Where] = set()
    mixed: list[Where] = []
    with proxy(store, mix=True, sequences_per_domain=8) as loader:
        for step in range(60):
            for name, micro_batches in loader.domain_batches(step):
                if name == MIX_ROW:
                    mixed += found(micro_batches, where)
                else:
                    trained |= set(found(micro_batches, where))
        available, needs = loader.available(), loader.needs(60)
    domains = ["books", "arxiv", "cc"]
    assert [domain for domain, _ in mixed] == [domains[t % 3] for t in range(480)]
    assert not trained & set(mixed)
    assert trained | set(mixed) == {(name, index) for name in domains for index in range(WINDOWS[name])}
    for name in domains:
        reserved = {window for window in mixed if window[0] == name}
        assert len(reserved) == WINDOWS[name] // 4
        assert (needs[name], available[name]) == (480, WINDOWS[name] - len(reserved))
        order = [window for window in mixed if window[0] == name]
        for start in range(0, 160 - len(reserved), len(reserved)):
            assert set(order[start : start + len(reserved)]) == reserved
    assert (needs[MIX_ROW], available[MIX_ROW]) == (480, 3 * 3)  # arxiv reserves the fewest, 3


def test_any_step_can_be_asked_for(store: TokenStore) -> None:
    def flat(batches: list[tuple[str, list[torch.Tensor]]]) -> dict[str, list[list[list[int]]]]:
        return {name: [batch.tolist() for batch in micro_batches] for name, micro_batches in batches}

    with proxy(store, mix=True) as loader:
        straight = [flat(loader.domain_batches(step)) for step in range(6)]
        for step in (5, 0, 0, 3, 4, 2, 1, 5):
            assert flat(loader.domain_batches(step)) == straight[step]
        assert len({str(batches) for batches in straight}) == 6


def test_domains_without_a_sequence_are_refused(tmp_path: Path) -> None:
    small = make_store(tmp_path / "store", {"books": np.arange(40), "short": np.arange(15), "none": np.arange(0)})
    with pytest.raises(StoreError, match=r"'short': has 0 .* use a shorter data.sequence_length or prepare more text"):
        proxy(small, train_domains=["books", "short"], sequence_length=16)
    with pytest.raises(StoreError, match="'none': has 0 whole"):
        proxy(small, train_domains=["books"], target_domains=["none"])
    with pytest.raises(StoreError, match="'short': has 1 whole training sequences where at least 2"):
        proxy(small, train_domains=["books", "short"], mix=True)
    with pytest.raises(StoreError, match="no domain 'book'; did you mean 'books'"):
        proxy(small, train_domains=["book"])


# The base model


def test_mixture_batches_are_the_windows_and_domains_of_their_samples(
    store: TokenStore, where: dict[tuple[int, ...], Where]
) -> None:
    names = list(WINDOWS)
    seen = dict.fromkeys(names, 0)
    with mixture(store) as loader:
        for number, batch in zip(range(30), loader.batches(0), strict=False):
            assert isinstance(batch, MixtureBatch)
            assert batch.number == number
            assert len(batch.micro_batches) == 16
            for tokens, domains in batch.micro_batches:
                assert (tokens.shape, tokens.dtype) == ((2, LENGTH), torch.int64)
                assert (domains.shape, domains.dtype) == ((2,), torch.int64)
                assert [name for name, _ in found([tokens], where)] == [names[index] for index in domains.tolist()]
                for index in domains.tolist():
                    seen[names[index]] += 1
    # 100 samples with the first weights, 860 with the second.
    due = {"books": 40 + 86, "arxiv": 30 + 86, "cc": 20 + 688, "github": 10}
    assert sum(seen.values()) == sum(due.values()) == 960
    assert all(abs(seen[name] - due[name]) < 2.1 for name in names)


def test_batches_hold_each_domains_epochs_whatever_the_ranks(
    store: TokenStore, where: dict[tuple[int, ...], Where]
) -> None:
    """After any batch, all ranks together have seen each window of a domain equally often, give or take one."""
    loaders = [mixture(store, rank, 4) for rank in range(4)]
    times: dict[Where, int] = dict.fromkeys(where.values(), 0)
    streams = [loader.batches(0) for loader in loaders]
    for _ in range(60):
        for stream in streams:
            for window in found([tokens for tokens, _ in next(stream).micro_batches], where):
                times[window] += 1
    for loader in loaders:
        loader.close()
    for name in WINDOWS:
        of_domain = [number for (domain, _), number in times.items() if domain == name]
        assert max(of_domain) - min(of_domain) <= 1
        assert max(of_domain) >= 1


def test_a_run_continues_where_it_stopped(store: TokenStore) -> None:
    def content(batch: MixtureBatch) -> list[object]:
        return [batch.number, [(tokens.tolist(), domains.tolist()) for tokens, domains in batch.micro_batches]]

    with mixture(store, 1, 2) as loader:
        straight = [content(batch) for _, batch in zip(range(12), loader.batches(0), strict=False)]
        state = loader.state(7)
    with mixture(store, 1, 2) as loader:
        loader.check_state(json.loads(json.dumps(state)))
        first = state["samples_seen"] // 32
        assert [content(batch) for _, batch in zip(range(5), loader.batches(first), strict=False)] == straight[7:]


def test_an_order_for_another_store_is_refused(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="the store has"):
        mixture(store, sequence_length=LENGTH * 2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_with_some_domains_goes_on_where_each_of_them_ended(
    store: TokenStore, where: dict[tuple[int, ...], Where], world_size: int
) -> None:
    """Two of three domains in a step, targets in the last of every three from the second on; on any number of ranks."""
    options = {"domains_per_step": 2, "update_every": 3, "first_update": 1, "target_domains": ["github"]}
    with proxy(store) as plain:
        whole = {name: [] for name in ("books", "arxiv", "cc")}
        for step in range(12):
            for name, micro_batches in plain.domain_batches(step):
                whole[name] += found(micro_batches, where)
    loaders = [proxy(store, rank, world_size, **options) for rank in range(world_size)]
    seen: dict[str, list[Where]] = {name: [] for name in loaders[0].row_names}
    for step in range(12):
        assert sum(map(len, seen.values())) == loaders[0].samples(step) == sum(loaders[0].needs(step).values())
        of_ranks = [loader.domain_batches(step) for loader in loaders]
        names = [name for name, _ in of_ranks[0]]
        assert loaders[0].is_update(step) is (step in (3, 6, 9))
        assert ("github" in names) is (step in (3, 6, 9))
        assert len(set(names) - {"github"}) == 2
        for number, name in enumerate(names):
            seen[name] += [window for batches in of_ranks for window in found(batches[number][1], where)]
    for name, windows in whole.items():
        assert len(seen[name]) == 8 * 16  # two thirds of 12 steps
        assert seen[name] == windows[: 8 * 16]
    assert len(seen["github"]) == 3 * 16
    for loader in loaders:
        loader.close()


# Both


def test_the_state_is_small_and_counts_samples(store: TokenStore) -> None:
    with proxy(store, mix=True) as loader:
        assert loader.state(10)["samples_seen"] == 10 * 16 * 4
        assert len(json.dumps(loader.state(10**12))) < 110
    with mixture(store) as base:
        assert base.state(10)["samples_seen"] == 320
        assert len(json.dumps(base.state(10**12))) < 110


def test_a_state_fits_other_ranks_and_micro_batches_but_no_other_data(
    store: TokenStore, ids: dict[str, np.ndarray], tmp_path: Path
) -> None:
    changed = dict(ids)
    changed["github"] = np.where(np.arange(len(ids["github"])) == 3, 0, ids["github"])
    other = make_store(tmp_path / "other", changed)
    moved = make_store(tmp_path / "moved", ids)
    loaders = [proxy(store), mixture(store)]
    for loader, fitting, strange in (
        (
            loaders[0],
            [proxy(store, 3, 4, 4), proxy(moved)],
            [
                proxy(other),
                proxy(store, seed=2),
                proxy(store, sequence_length=4),
                proxy(store, mix=True),
                proxy(store, sequences_per_domain=32),
                proxy(store, domains_per_step=2),
                proxy(store, update_every=2),
                proxy(store, first_update=1),
                proxy(store, train_domains=["books", "arxiv"]),
                proxy(store, train_domains=["books", "arxiv"], target_domains=["cc"]),
            ],
        ),
        (
            loaders[1],
            [mixture(store, 3, 4, 8), mixture(moved)],
            [mixture(other), mixture(store, order=an_order(seed=2)), mixture(store, global_batch_size=64), loaders[0]],
        ),
    ):
        for same in fitting:
            same.check_state(loader.state(5))
            same.close()
        for different in strange:
            with pytest.raises(RunError, match="another order of samples"):
                different.check_state(loader.state(5))
            different.close()
        with pytest.raises(RunError):
            loader.check_state({})
    for loader in loaders:
        loader.close()


def test_sizes_that_do_not_fit_the_ranks_are_refused(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="18 sequences for 4 ranks in micro-batches of 2"):
        proxy(store, 0, 4, 2, sequences_per_domain=18)
    with pytest.raises(ValueError, match="3 sequences for 2 ranks"):
        mixture(store, 0, 2, 2, global_batch_size=3)
    for loader in (proxy, mixture):
        with pytest.raises(ValueError, match="rank 2 of 2"):
            loader(store, 2, 2)


class BreakingLoader(MixtureLoader):
    """Fails once, at batch 3, and notes which batches were made and in which thread."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.reached_fourth = threading.Event()

    def _make(self, number: int) -> list[MixtureBatch]:
        self.made.append(number)
        self.threads.add(threading.get_ident())
        if number == 4:
            self.reached_fourth.set()
        if self.made == [0, 1, 2, 3]:
            raise OSError("the disk has gone")
        return super()._make(number)


@pytest.mark.parametrize("together", [1, 48, 200, 256])
@pytest.mark.parametrize("first", [0, 5, 13])
def test_batches_do_not_depend_on_how_many_are_read_together(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, together: int, first: int
) -> None:
    with mixture(store, 1, 2, 4, global_batch_size=32) as loader:
        wanted = list(itertools.islice(loader.batches(first), 20))
    monkeypatch.setattr("doge_ds.data.loader.READ_TOGETHER", together)
    monkeypatch.setattr("doge_ds.data.loader.LOCATED_TOGETHER", 3 * together)
    with mixture(store, 1, 2, 4, global_batch_size=32) as loader:
        found = list(itertools.islice(loader.batches(first), 20))
    assert [batch.number for batch in found] == [batch.number for batch in wanted] == list(range(first, first + 20))
    for one, other in zip(found, wanted, strict=True):
        for parts in zip(one.micro_batches, other.micro_batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True))
    with pytest.raises(ValueError, match="batch -1"):
        loader.batches(-1)


def test_errors_of_the_thread_surface_at_the_batch_that_they_belong_to(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_ds.data.loader.READ_TOGETHER", 32)  # blocks of one batch
    with BreakingLoader(store, an_order(), 32, 2, LENGTH, rank=0, world_size=1) as loader:
        batches = loader.batches(0)
        assert [next(batches).number for _ in range(3)] == [0, 1, 2]
        assert loader.reached_fourth.wait(10), "two batches are prepared ahead of the third"
        with pytest.raises(OSError, match="the disk has gone"):
            next(batches)
        assert next(loader.batches(3)).number == 3
    assert loader.made == [0, 1, 2, 3, 4, 5, 3]
    assert len(loader.threads) == 1
    assert threading.get_ident() not in loader.threads


def test_a_closed_loader_gives_no_batches_and_leaves_no_thread(store: TokenStore) -> None:
    before = threading.active_count()
    loader = proxy(store)
    loader.domain_batches(0)
    assert threading.active_count() == before + 1
    with pytest.raises(ValueError, match="batch -1"):
        loader.domain_batches(-1)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="after shutdown"):
        loader.domain_batches(1)


def test_a_loader_that_nobody_closed_does_not_keep_the_process(store: TokenStore) -> None:
    program = (
        "import sys; from doge_ds.data.loader import ProxyLoader; from doge_ds.data.tokens import TokenStore\n"
        "loader = ProxyLoader(TokenStore(sys.argv[1]), ['books'], [], False, 8, 8, 8, 1, 0, 1)\n"
        "print(loader.domain_batches(0)[0][1][0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(store.path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "torch.Size([8, 8])\n"
