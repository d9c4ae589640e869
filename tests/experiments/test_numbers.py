"""Means, intervals, differences and distances, beside the same by other means."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from doge_ds.experiments.numbers import (
    across_seeds,
    averages,
    by_domain,
    differences,
    estimate,
    from_uniform,
)
from doge_ds.mixture_tables import total_variation

NUMBERS = st.floats(-1e6, 1e6).map(lambda number: round(number, 6))
WEIGHTS = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


def mixture(weights: list[float]) -> dict[str, float]:
    return dict(zip("abc", (np.array(weights) / sum(weights)).tolist(), strict=True))


@given(st.lists(NUMBERS, min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate(dict(enumerate(values)))
    assert found["by_seed"] == {str(seed): value for seed, value in enumerate(values)}
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    error = statistics.stdev(values) / math.sqrt(len(values))
    if error > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=error)
        assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    else:
        assert found["low"] == found["high"] == found["mean"]


def test_the_interval_of_three_seeds_by_the_table() -> None:
    """Student's 97.5% point at 2 degrees of freedom is 4.303; of 1, 2 and 3 the standard error is 1 / sqrt(3)."""
    found = estimate({0: 1.0, 1: 2.0, 2: 3.0})
    assert found["mean"] == 2
    half = 4.303 / math.sqrt(3)
    assert (found["low"], found["high"]) == (pytest.approx(2 - half, abs=1e-3), pytest.approx(2 + half, abs=1e-3))


def test_one_seed_has_no_interval_and_a_diverged_one_takes_the_mean_away() -> None:
    assert estimate({7: 1.5}) == {"by_seed": {"7": 1.5}, "mean": 1.5, "low": None, "high": None}
    assert estimate({0: 1.5, 1: None}) == {"by_seed": {"0": 1.5, "1": None}, "mean": None, "low": None, "high": None}
    assert estimate({})["mean"] is None


def test_differences_are_paired_by_seed() -> None:
    """The seeds' own levels, 100 apart, drop out: the interval of the difference knows nothing of them."""
    found = differences({0: 1.0, 1: 101.0, 2: 5.0, 4: None}, {0: 2.0, 1: 102.0, 3: 9.0, 4: 1.0})
    assert found == {0: -1, 1: -1, 4: None}
    assert estimate({seed: found[seed] for seed in (0, 1)})["high"] == -1


def test_averages_are_of_one_seed() -> None:
    numbers = by_domain({0: {"a": 1.0, "b": 3.0, "c": 100.0}, 5: {"a": 2.0, "b": None, "c": 4.0}})
    assert numbers["b"] == {0: 3.0, 5: None}
    assert averages(numbers, ["a", "b"]) == {0: 2.0, 5: None}
    assert averages(numbers, ["a", "c"]) == {0: 50.5, 5: 3.0}


@given(WEIGHTS, WEIGHTS)
def test_total_variation_is_the_largest_difference_of_any_set_of_domains(one: list[float], other: list[float]) -> None:
    first, second = mixture(one), mixture(other)
    sets = [[name for place, name in enumerate("abc") if number >> place & 1] for number in range(8)]
    largest = max(abs(sum(first[name] - second[name] for name in names)) for names in sets)
    assert total_variation(first, second) == pytest.approx(largest)


def test_distances() -> None:
    assert from_uniform({"a": 1.0, "b": 0.0}) == 0.5
    assert from_uniform(dict.fromkeys("abcd", 0.25)) == 0
    corners = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}]
    assert across_seeds(corners) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert across_seeds(corners[:1]) is None
