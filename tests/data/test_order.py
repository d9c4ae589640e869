"""The order of samples, piece by piece; what it guarantees as a whole is in test_guarantees.py."""

import hashlib
from fractions import Fraction
from math import floor
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.data.order import (
    PERIOD,
    DomainOrder,
    MixtureOrder,
    Segment,
    apportion,
    build_period,
    slots_of_rank,
    without_traces,
)
from doge_ds.data.permutation import Permutation
from doge_ds.errors import ConfigError, MixtureError, StoreError
from tests.orders import assert_each_epoch_once, random_composition

NAMES = ["stackexchange", "arxiv", "wikipedia", "cc", "books", "github"]
exact = settings(deadline=None, max_examples=20, derandomize=True)


def largest_remainder(weights: dict[str, float]) -> dict[str, int]:
    """In exact fractions, seat by seat, straight from the definition."""
    quotas = {name: Fraction(weight) * 65536 for name, weight in weights.items()}
    seats = {name: floor(quota) for name, quota in quotas.items()}
    open_to = sorted(name for name, weight in weights.items() if weight > 0)
    while sum(seats.values()) < 65536:
        winner = max(open_to, key=lambda name: quotas[name] - seats[name])  # max takes the first of equals
        seats[winner] += 1
        open_to.remove(winner)
    return seats


def assert_within_one_sample(integers: dict[str, int]) -> None:
    """|count - n a / P| < 1 at each of the P prefixes, in integers; and rank counts the domain's earlier slots."""
    table, rank = build_period(integers)
    assert len(table) == len(rank) == PERIOD
    prefixes = np.arange(1, PERIOD + 1)
    positive = sorted(name for name, integer in integers.items() if integer)
    assert set(np.unique(table)) == set(range(len(positive)))
    for index, name in enumerate(positive):
        counts = np.cumsum(table == index)
        error = np.abs(counts * PERIOD - prefixes * integers[name]).max()
        assert error < PERIOD, f"{name}: {error / PERIOD} samples"
        assert np.array_equal(rank[table == index], np.arange(integers[name]))


def named_samples(order: MixtureOrder, samples: np.ndarray) -> list[tuple[str, int]]:
    names = list(order.sequence_counts)
    domains, sequences = order.locate(samples)
    return [(names[domain], sequence) for domain, sequence in zip(domains.tolist(), sequences.tolist(), strict=True)]


# Weights to integers


@exact
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(any), st.randoms(use_true_random=False))
def test_apportion_is_largest_remainder(parts: list[int], random: Random) -> None:
    weights = {f"d{index}": part / sum(parts) for index, part in enumerate(parts)}
    expected = largest_remainder(weights)
    if any(weights[name] > 0 and expected[name] == 0 for name in weights):
        with pytest.raises(MixtureError, match="rounds to 0 of 65536; set it to 0 or to at least"):
            apportion(weights)
        return
    found = apportion(weights)
    assert found == expected
    assert list(found) == list(weights)
    shuffled = list(weights)
    random.shuffle(shuffled)
    assert apportion({name: weights[name] for name in shuffled}) == expected


@pytest.mark.parametrize("domains", [3, 7, 22, 509, 512])
def test_equal_remainders_go_by_name(domains: int) -> None:
    names = [f"d{index:03d}" for index in range(domains)]
    found = apportion(dict.fromkeys(reversed(names), 1 / domains))
    extra = PERIOD % domains
    assert [found[name] for name in names] == [PERIOD // domains + (index < extra) for index in range(domains)]


def test_apportion_keeps_zero_and_tolerates_rounding_of_the_sum() -> None:
    assert apportion({"a": 0.5, "b": 0.0, "c": 0.5 + 9e-7}) == {"a": 32768, "b": 0, "c": 32768}
    assert apportion({"a": 0.5, "b": 0.0, "c": 0.5 - 9e-7}) == {"a": 32768, "b": 0, "c": 32768}
    assert apportion({"only": 1.0}) == {"only": 65536}


@exact
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60).filter(lambda parts: max(parts) > 0.1), st.integers(0, 12))
def test_weights_without_traces_can_be_apportioned(parts: list[float], power: int) -> None:
    weights = {f"d{index}": part**power / sum(p**power for p in parts) for index, part in enumerate(parts)}
    found = without_traces(weights)
    shares = apportion(found)
    assert list(found) == list(weights)
    for name, weight in weights.items():
        assert (found[name] > 0) == (weight >= 1 / PERIOD) == (shares[name] > 0)
    lost = sum(weight for weight in weights.values() if weight < 1 / PERIOD)
    assert all(abs(found[name] - weight) <= lost + 1e-12 for name, weight in weights.items())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.5, "b": -0.5}, "domain 'b': has weight -0.5"),
        ({"a": float("nan"), "b": 1.0}, "domain 'a': has weight nan"),
        ({"a": float("inf"), "b": 1.0}, "domain 'a': has weight inf"),
        ({"a": 0.5, "b": 0.499998}, "sum to 0.999998; divide each by their sum"),
        ({"a": 0.5, "b": 0.500002}, "sum to 1.000002"),
        ({}, "sum to 0"),
        ({"a": 1 - 1e-6, "b": 1e-6}, "domain 'b': has weight 1e-06, which rounds to 0"),
    ],
)
def test_apportion_refuses(weights: dict[str, float], message: str) -> None:
    with pytest.raises(MixtureError, match=message):
        apportion(weights)


# One period


@exact
@given(st.integers(1, 64), st.integers(0, 2**32))
def test_every_prefix_is_within_one_sample(domains: int, seed: int) -> None:
    assert_within_one_sample(random_composition(domains, seed))


HARD = {  # the integer weights of all domains but the first, which has the rest of the period
    "one domain": [],
    "two halves": [32768],
    "almost nothing but one": [1],
    "just over and under a half": [32767],
    "thirds": [21845, 21845],
    "powers of two": [2**power for power in range(16)],
    "zeros between": [0, 30000, 0, 30000, 0],
    "one large, 511 of one": [1] * 511,
    "half in one, half in 511": [64] * 511,
    "512 equal": [128] * 511,
    "512, coprime neighbours": [127, 129] * 255 + [129],
    "a staircase": [*range(1, 361)],
    "many threes and two large": [3] * 255 + [8193, 16385],
}


@pytest.mark.parametrize("others", HARD.values(), ids=HARD.keys())
def test_every_prefix_of_hard_weights_is_within_one_sample(others: list[int]) -> None:
    integers = [PERIOD - sum(others), *others]
    assert_within_one_sample({f"domain{index:03d}": integer for index, integer in enumerate(integers)})


@pytest.mark.parametrize("seed", range(2))
def test_every_prefix_of_512_domains_is_within_one_sample(seed: int) -> None:
    assert_within_one_sample(random_composition(512, seed))


def test_a_period_does_not_depend_on_the_listing() -> None:
    integers = random_composition(22, seed=5)
    backwards = dict(reversed([*integers.items(), ("unused", 0)]))
    for found, expected in zip(build_period(backwards), build_period(integers), strict=True):
        assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="sum to 65535"):
        build_period({"a": 65535})


# Permutations


@exact
@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 10**9))
def test_a_permutation_is_one(count: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(Permutation(count, "test", seed)(np.arange(count), epoch)), np.arange(count))


@pytest.mark.parametrize("count", range(1, 80))
def test_small_permutations_of_many_epochs_at_once(count: int) -> None:
    epochs = np.repeat(np.arange(50), count)
    together = Permutation(count, "test", 1)(np.tile(np.arange(count), 50), epochs).reshape(50, count)
    assert np.array_equal(np.sort(together, axis=1), np.tile(np.arange(count), (50, 1)))
    for epoch in (0, 7, 49):
        assert np.array_equal(together[epoch], Permutation(count, "test", 1)(np.arange(count), epoch))


@pytest.mark.parametrize("count", [2**31 - 1, 2**40, 2**40 + 1, 2**45 + 12345])
def test_large_permutations_stay_in_range_and_never_collide(count: int) -> None:
    elements = np.concatenate([np.arange(50_000), np.arange(count - 50_000, count)])
    images = Permutation(count, "test", 3)(elements)
    assert images.min() >= 0
    assert images.max() < count
    assert len(np.unique(images)) == len(elements)
    assert abs(images.mean() / count - 0.5) < 5 / np.sqrt(12 * len(elements))


def test_permutations_are_mixed() -> None:
    """Where elements go is uniform, and neighbours do not stay neighbours, over 4000 epochs (chi-squared, 6 sigma)."""
    count, epochs = 50, 4000
    images = Permutation(count, "test", 1)(np.tile(np.arange(count), epochs), np.repeat(np.arange(epochs), count))
    landed = np.zeros((count, count))
    np.add.at(landed, (np.tile(np.arange(count), epochs), images), 1)
    expected, freedom = epochs / count, (count - 1) ** 2
    assert abs(((landed - expected) ** 2 / expected).sum() - freedom) < 6 * np.sqrt(2 * freedom)
    steps = np.diff(images.reshape(epochs, count), axis=1)
    assert abs((np.abs(steps) == 1).sum() / epochs - 2) < 0.2


def test_permutations_refuse_what_is_out_of_range() -> None:
    for elements in ([5], [-1]):
        with pytest.raises(ValueError, match="of 5"):
            Permutation(5, "test")(elements)
    with pytest.raises(ValueError, match="0 elements"):
        Permutation(0, "test")
    assert Permutation(5, "test")(np.empty(0, dtype=np.int64)).shape == (0,)


def test_keys_do_not_run_together() -> None:
    keys = [("a", 11), ("a1", 1), ("a", 1), ("b", 1), ("a", 1, 1), ("a", "1"), ("a",)]
    images = {tuple(Permutation(1000, *key)(np.arange(1000), epoch)) for key in keys for epoch in (0, 1)}
    assert len(images) == 2 * len(keys)


# One domain


@exact
@given(st.integers(1, 400), st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 900))
def test_each_epoch_visits_each_sequence_once(count: int, seed: int, first_epoch: int, positions: int) -> None:
    order = DomainOrder("books", count, seed)
    assert_each_epoch_once(order.sequences(first_epoch * count + np.arange(positions)), count)


def test_epochs_seeds_and_names_have_orders_of_their_own() -> None:
    orders = [DomainOrder(name, 500, seed).sequences(np.arange(1000)) for name in ("a", "b") for seed in (1, 2)]
    epochs = np.concatenate(orders).reshape(8, 500)
    agreeing = [(epochs[i] == epochs[j]).sum() for i in range(8) for j in range(i)]
    assert max(agreeing) < 12  # one is expected where two random permutations meet


@exact
@given(st.integers(2, 400), st.integers(0, 2**40), st.integers(1, 30))
def test_reserved_and_own_parts_share_nothing_and_lose_nothing(count: int, seed: int, domains: int) -> None:
    own = DomainOrder("books", count, seed, "own", domains)
    reserved = DomainOrder("books", count, seed, "reserved", domains)
    assert reserved.sequence_count == max(1, count // (domains + 1))
    assert own.sequence_count + reserved.sequence_count == count
    for epoch in range(3):
        parts = [
            part.sequences(np.arange(part.sequence_count) + epoch * part.sequence_count) for part in (own, reserved)
        ]
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))


def test_the_reserved_part_is_drawn_from_the_whole_domain() -> None:
    reserved = DomainOrder("books", 10_000, 1, "reserved", 4)
    sequences = reserved.sequences(np.arange(2000))
    assert abs(sequences.mean() - 5000) < 6 * 10_000 / np.sqrt(12 * 2000)
    other_seed = DomainOrder("books", 10_000, 2, "reserved", 4).sequences(np.arange(2000))
    assert len(np.intersect1d(sequences, other_seed)) < 600  # 400 expected


def test_domains_that_are_too_small_are_refused() -> None:
    with pytest.raises(
        StoreError, match=r"domain 'a': has 0 whole .* shorter data.sequence_length or prepare more text"
    ):
        DomainOrder("a", 0, 1)
    for part in ("own", "reserved"):
        with pytest.raises(StoreError, match="has 1 whole training sequences where at least 2"):
            DomainOrder("a", 1, 1, part, 3)
        with pytest.raises(ValueError, match="0 train domains"):
            DomainOrder("a", 100, 1, part)
    with pytest.raises(ValueError, match="number -1"):
        DomainOrder("a", 5, 1).sequences([3, -1])


# All domains


def six_domains(seed: int = 1, counts: tuple[int, ...] = (300, 70, 1000, 5, 64, 12)) -> MixtureOrder:
    weights = dict(zip(NAMES, (0.3, 0.25, 0.2, 0.15, 0.07, 0.03), strict=True))
    return MixtureOrder(dict(zip(NAMES, counts, strict=True)), [Segment(0, weights)], seed)


def sha256(*arrays: np.ndarray) -> str:
    return hashlib.sha256(np.stack(arrays, axis=1).astype("<i8").tobytes()).hexdigest()


def test_the_format_is_frozen() -> None:
    """Who changes these hashes changes what resumed runs train on, and must raise FORMAT_VERSION."""
    counts = dict(zip(NAMES, (300, 70, 1000, 5, 64, 12), strict=True))
    first = dict(zip(NAMES, (0.3, 0.25, 0.2, 0.15, 0.07, 0.03), strict=True))
    second = dict(zip(NAMES, (0.01, 0.29, 0.0, 0.4, 0.2, 0.1), strict=True))
    order = MixtureOrder(counts, [Segment(0, first), Segment(7001, second)], seed=20240711)
    assert (
        sha256(*order.locate(np.arange(10_000))) == "cc7aeb87dc08fcd1a7f8bef64e9f2e6997855acaf941d3c8ff9763c8e08ff9b7"
    )
    parts = [DomainOrder("arxiv", 1000, 5, part, 3).sequences(np.arange(2000)) for part in ("all", "own", "reserved")]
    assert sha256(*parts) == "a97c8981868b897288f61af2ea0333d511b9c65b7fdfccb7597ffc5f330d56de"
    assert (
        sha256(*(slots_of_rank(7, batch, 48, 4, 2) for batch in range(100)))
        == "57cd13448d2a7b874cfa91936f3e12a430d3758d6712382870bd9145e09ff97d"
    )
    assert order.fingerprint() == "65c3c108fb609077"


def test_listing_domains_in_another_order_gives_the_same_samples() -> None:
    order = six_domains()
    counts = {name: order.sequence_counts[name] for name in sorted(NAMES)}
    weights = {name: order.integer_weights[0][name] / PERIOD for name in reversed(NAMES)}
    other = MixtureOrder(counts, [Segment(0, weights)], seed=1)
    samples = np.arange(100_000, 110_000)
    assert named_samples(other, samples) == named_samples(order, samples)
    assert other.fingerprint() == order.fingerprint()


def test_another_seed_gives_other_sequences_of_the_same_domains() -> None:
    samples = np.arange(10_000)
    (domains, sequences), (same_domains, other_sequences) = (
        six_domains(1).locate(samples),
        six_domains(2).locate(samples),
    )
    assert np.array_equal(domains, same_domains)
    assert (sequences == other_sequences).mean() < 0.1


def test_a_sample_depends_on_its_number_only() -> None:
    order = six_domains()
    far = 10**13 + 12345
    samples = np.random.default_rng(0).permutation(np.concatenate([np.arange(3000), np.arange(far, far + 3000)]))
    domains, sequences = order.locate(samples)
    for place in range(0, len(samples), 97):
        domain, sequence = order.locate(samples[place : place + 1])
        assert (domain[0], sequence[0]) == (domains[place], sequences[place])
    assert [array.shape for array in order.locate([])] == [(0,), (0,)]


def test_counts_agree_with_samples_far_out() -> None:
    order = six_domains()
    far = 3 * 10**14 + 777
    assert sum(order.counts(far).values()) == far
    domains, _ = order.locate(np.arange(far, far + 500))
    for step in range(500):
        before, after = order.counts(far + step), order.counts(far + step + 1)
        assert [after[name] - before[name] for name in NAMES] == [int(domains[step] == i) for i in range(6)]


def test_the_fingerprint_changes_with_everything_that_decides_a_sample() -> None:
    weights, counts = {"a": 0.25, "b": 0.75}, {"a": 10, "b": 20}
    orders = [
        MixtureOrder(counts, [Segment(0, weights)], 1),
        MixtureOrder(counts, [Segment(0, weights)], 2),
        MixtureOrder({"a": 11, "b": 20}, [Segment(0, weights)], 1),
        MixtureOrder({"a": 10, "c": 20}, [Segment(0, {"a": 0.25, "c": 0.75})], 1),
        MixtureOrder(counts, [Segment(0, {"a": 0.25 + 1 / PERIOD, "b": 0.75 - 1 / PERIOD})], 1),
        MixtureOrder(counts, [Segment(0, weights), Segment(5, {"a": 0.5, "b": 0.5})], 1),
        MixtureOrder(counts, [Segment(0, weights), Segment(6, {"a": 0.5, "b": 0.5})], 1),
    ]
    fingerprints = [order.fingerprint() for order in orders]
    assert len(set(fingerprints)) == len(orders)
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) >= 0 for fingerprint in fingerprints)
    same = MixtureOrder(dict(reversed(counts.items())), [Segment(0, {"b": 0.75 + 1e-9, "a": 0.25 - 1e-9})], 1)
    assert same.fingerprint() == fingerprints[0]


def test_the_fingerprint_of_what_is_behind_leaves_what_comes_free() -> None:
    counts, segments = {"a": 10, "b": 20}, [Segment(0, {"a": 0.25, "b": 0.75}), Segment(5, {"a": 0.5, "b": 0.5})]
    one, two = (MixtureOrder(counts, segments[:number], 1) for number in (1, 2))
    assert two.fingerprint(5) == two.fingerprint(1) == one.fingerprint(5) == one.fingerprint(600) == one.fingerprint()
    assert two.fingerprint(6) == two.fingerprint() != one.fingerprint()


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 10, 5], [-1, 3]])
def test_segments_that_do_not_increase_from_0_are_refused(starts: list[int]) -> None:
    with pytest.raises(ConfigError, match="weight schedule: has segments that start at"):
        MixtureOrder({"a": 5}, [Segment(start, {"a": 1.0}) for start in starts], 1)


def test_domains_without_sequences_or_weight() -> None:
    counts = {"a": 5, "empty": 0, "b": 7}
    order = MixtureOrder(counts, [Segment(0, {"a": 0.5, "b": 0.5}), Segment(9, {"b": 1.0, "empty": 0.0})], 1)
    assert order.integer_weights == [{"a": 32768, "empty": 0, "b": 32768}, {"a": 0, "empty": 0, "b": 65536}]
    assert order.counts(1000)["empty"] == 0
    with pytest.raises(StoreError, match="domain 'empty': has 0 whole training sequences"):
        MixtureOrder(counts, [Segment(0, {"a": 1.0}), Segment(9, {"a": 0.5, "empty": 0.5})], 1)
    with pytest.raises(MixtureError, match=r"name 'emty', which is no domain here; did you mean 'empty'\?"):
        MixtureOrder(counts, [Segment(0, {"a": 0.5, "emty": 0.5})], 1)
    for refused in (lambda: order.locate([0, -1]), lambda: order.counts(-1)):
        with pytest.raises(ValueError, match="number -1"):
            refused()


# Ranks


@exact
@given(st.integers(0, 2**40), st.integers(0, 10**9), st.integers(1, 40))
def test_the_ranks_take_the_same_batch_whatever_their_number(seed: int, batch: int, per_eight: int) -> None:
    size = 8 * per_eight
    whole = slots_of_rank(seed, batch, size, 1, 0)
    assert np.array_equal(np.sort(whole), np.arange(size))
    for world_size in (2, 4, 8):
        parts = [slots_of_rank(seed, batch, size, world_size, rank) for rank in range(world_size)]
        assert {len(part) for part in parts} == {size // world_size}
        assert np.array_equal(np.concatenate(parts), whole)


def test_no_rank_is_stuck_to_one_domain() -> None:
    """With weights (.5, .5) the period alternates, so that striding would give each of two ranks one domain only."""
    order = MixtureOrder({"a": 100, "b": 100}, [Segment(0, {"a": 0.5, "b": 0.5})], 1)
    assert set(order.locate(np.arange(0, 64, 2))[0]) == {0}
    for rank in range(2):
        numbers = np.concatenate([batch * 64 + slots_of_rank(1, batch, 64, 2, rank) for batch in range(100)])
        assert abs(order.locate(numbers)[0].mean() - 0.5) < 0.05
    batches = {tuple(slots_of_rank(seed, batch, 64, 2, 0)) for batch in range(100) for seed in range(2)}
    assert len(batches) == 200


@pytest.mark.parametrize(("size", "world_size", "rank"), [(10, 4, 0), (0, 1, 0), (8, 2, 2), (8, 2, -1)])
def test_batches_that_cannot_be_dealt_are_refused(size: int, world_size: int, rank: int) -> None:
    with pytest.raises(ValueError, match=r"ranks|rank -?\d of"):
        slots_of_rank(1, 0, size, world_size, rank)
