"""The bootstrap: its coverage, its width, and what pairing is worth."""

import math

import numpy as np
import pytest

from doge_ds.errors import ConfigError
from doge_ds.evaluation.intervals import average_difference, difference, log_perplexity, log_perplexity_interval
from doge_ds.evaluation.windows import DomainLosses


def losses(count: int, seed: int, mean: float = 3.0, spread: float = 0.5, length: int = 10) -> DomainLosses:
    """Windows whose nats a token vary around a mean; the last one is shorter."""
    generator = np.random.default_rng(seed)
    tokens = np.full(count, length)
    tokens[-1] = max(1, length // 3)
    return DomainLosses(tokens * generator.normal(mean, spread, count), tokens)


def test_many_windows_have_the_interval_of_the_delta_method() -> None:
    one = losses(2000, 0, spread=2.0)
    residuals = one.nats - log_perplexity(one) * one.tokens
    half = 1.96 * np.sqrt((residuals**2).sum()) / one.tokens.sum()
    low, high = log_perplexity_interval(one, 0)
    # The ends of 1,000 resamples have a standard error of 4% of the width.
    assert (low, high) == pytest.approx((log_perplexity(one) - half, log_perplexity(one) + half), abs=0.3 * half)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    intervals = [log_perplexity_interval(losses(80, seed), seed) for seed in range(100)]
    covered = sum(low <= 3.0 <= high for low, high in intervals)
    assert 87 <= covered <= 99  # of Binomial(100, 0.94), all but 1 in 100


def test_it_holds_the_measured_value_and_is_the_same_each_time() -> None:
    one = losses(40, 5)
    low, high = log_perplexity_interval(one, 3)
    assert low < log_perplexity(one) < high
    assert log_perplexity_interval(one, 3) == (low, high)
    assert log_perplexity_interval(one, 4) != (low, high)


def test_one_window_says_nothing_of_the_spread() -> None:
    one = losses(1, 0)
    assert log_perplexity_interval(one, 0) == (-math.inf, math.inf)
    assert difference(one, one, 0) == (0.0, -math.inf, math.inf)


def test_equal_windows_have_an_interval_of_no_width() -> None:
    one = DomainLosses(np.full(30, 21.0), np.full(30, 7))
    assert log_perplexity_interval(one, 0) == pytest.approx((3.0, 3.0))


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    a = losses(50, 0, spread=1.0)
    b = DomainLosses(a.nats + a.tokens * np.random.default_rng(1).normal(0.05, 0.05, 50), a.tokens)
    mean, low, high = difference(b, a, 0)
    assert 0 < low < mean < high < 0.1
    assert mean == pytest.approx(log_perplexity(b) - log_perplexity(a))
    (low_a, high_a), (low_b, high_b) = log_perplexity_interval(a, 0), log_perplexity_interval(b, 0)
    assert low_b < high_a
    assert high - low < 0.2 * min(high_a - low_a, high_b - low_b)
    assert difference(a, b, 0) == pytest.approx((-mean, -high, -low))


def test_two_models_alike_differ_by_nothing() -> None:
    one = losses(50, 0)
    assert difference(one, one, 0) == (0.0, 0.0, 0.0)


def test_a_difference_without_meaning_is_within_the_noise_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        a = losses(60, seed, spread=1.0)
        noise = np.random.default_rng(1000 + seed).normal(0, 0.3, 60)
        _, low, high = difference(DomainLosses(a.nats + a.tokens * noise, a.tokens), a, seed)
        held += low <= 0 <= high
    assert 87 <= held <= 99


def test_the_average_over_domains_counts_each_the_same() -> None:
    a = {"big": losses(400, 0), "small": losses(20, 1)}
    b = {"big": losses(400, 2), "small": losses(20, 3, mean=2.5)}
    mean, low, high = average_difference(a, b, 0)
    each = {name: difference(a[name], b[name], 0) for name in a}
    assert mean == pytest.approx((each["big"][0] + each["small"][0]) / 2)
    assert low < mean < high
    # Independent domains: variances add, and a mean of two halves them.
    width = math.hypot(*(high - low for _, low, high in each.values())) / 2
    assert high - low == pytest.approx(width, rel=0.15)


@pytest.mark.parametrize("change", ["other windows", "other number", "other domain"])
def test_only_the_same_windows_are_compared(change: str) -> None:
    a = {"d": losses(30, 0)}
    b = {
        "other windows": {"d": losses(30, 0, length=20)},
        "other number": {"d": losses(31, 0)},
        "other domain": {"e": losses(30, 0)},
    }[change]
    with pytest.raises(ConfigError, match="not measured over the same windows"):
        average_difference(a, b, 0)
