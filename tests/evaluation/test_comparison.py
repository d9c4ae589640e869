"""Models side by side: differences, their intervals, and the tables."""

import csv
import io
import json

import numpy as np
import pytest

from doge_ds.evaluation.comparison import (
    ACCURACY,
    AVERAGE,
    LOG_PERPLEXITY,
    Measured,
    Row,
    as_csv,
    as_json,
    as_markdown,
    as_text,
    compare,
)
from doge_ds.evaluation.windows import DomainLosses

WINDOWS = 400


def losses(shift: float, noise: float = 0.0, seed: int = 0) -> DomainLosses:
    """Windows that differ much from each other, and alike between models."""
    hardness = np.random.default_rng(1).normal(4.0, 1.0, WINDOWS)
    own = np.random.default_rng(seed + 2).normal(0.0, noise, WINDOWS) if noise else np.zeros(WINDOWS)
    tokens = np.random.default_rng(3).integers(10, 20, WINDOWS)
    return DomainLosses((hardness + shift + own) * tokens, tokens)


def answers(right: int, of: int = 200) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The second model is better on one domain by less than windows differ; the third is the first with noise."""
    return compare(
        [
            Measured("first", {"a": losses(0.0), "b": losses(1.0)}, {"sciq": answers(100)}),
            Measured("better", {"a": losses(-0.05, 0.1), "b": losses(1.0)}, {"sciq": answers(160)}),
            Measured("noise", {"a": losses(0.0, 1.0), "b": losses(1.0, 1.0)}, {"sciq": answers(100)[::-1]}),
        ]
    )


def row(rows: list[Row], measure: str, of: str, model: str) -> Row:
    (found,) = [row for row in rows if (row.measure, row.of, row.model) == (measure, of, model)]
    return found


def test_values_and_averages_are_those_of_the_windows(rows: list[Row]) -> None:
    of_a, of_b = losses(0.0), losses(1.0)
    wanted = [float(found.nats.sum() / found.tokens.sum()) for found in (of_a, of_b)]
    assert row(rows, LOG_PERPLEXITY, "a", "first").value == pytest.approx(wanted[0], rel=1e-12)
    assert row(rows, LOG_PERPLEXITY, AVERAGE, "first").value == pytest.approx(sum(wanted) / 2, rel=1e-12)
    assert row(rows, ACCURACY, "sciq", "better").value == pytest.approx(0.8)
    assert not [found for found in rows if (found.measure, found.of) == (ACCURACY, AVERAGE)], "one task has no average"


def test_pairs_tell_a_difference_that_is_smaller_than_windows_differ(rows: list[Row]) -> None:
    found = row(rows, LOG_PERPLEXITY, "a", "better")
    assert found.exceeds_noise is True
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.05 < found.high < 0
    assert found.high - found.low < 0.05, "windows differ by 1, their mean by 0.05; pairs by 0.1, and 0.005"
    assert row(rows, ACCURACY, "sciq", "better").exceeds_noise is True


def test_noise_is_called_noise(rows: list[Row]) -> None:
    for measure, of in ((LOG_PERPLEXITY, "a"), (LOG_PERPLEXITY, AVERAGE), (ACCURACY, "sciq")):
        found = row(rows, measure, of, "noise")
        assert found.exceeds_noise is False
        assert found.low is not None
        assert found.high is not None
        assert found.low <= 0 <= found.high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """100 times two models that are 0.1 apart: a 95% interval misses in about 5."""
    missed = 0
    for seed in range(100):
        pair = [Measured(str(number), {"a": losses(0.1 * number, 1.0, 2 * seed + number)}, {}) for number in (0, 1)]
        found = compare(pair, seed)[1]
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 0.1 <= found.high
    assert missed <= 12  # the chance of more is below 0.2%


def test_one_window_says_nothing_of_the_noise() -> None:
    one = DomainLosses(np.array([3.0]), np.array([2]))
    other = DomainLosses(np.array([4.0]), np.array([2]))
    found = compare([Measured("x", {"a": one}, {}), Measured("y", {"a": other}, {})])[1]
    assert (found.difference, found.low, found.exceeds_noise) == (0.5, None, None)
    assert "+0.5000" in as_text([Row("log-perplexity", "a", "x", 1.5), found])


def test_all_forms_hold_the_same_numbers(rows: list[Row]) -> None:
    values = json.loads(json.dumps(as_json(rows)))
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert len(values) == len(lines) == len(rows)
    for found, value, line in zip(rows, values, lines, strict=True):
        assert Row(**value) == found
        assert float(line["value"]) == found.value
        assert line["low"] == ("" if found.low is None else str(found.low))
    for table in (as_text(rows), as_markdown(rows)):
        for found in rows:
            assert f"{found.value:.4f}" in table
            if found.difference is not None:
                assert f"{found.difference:+.4f}" in table
    assert len({len(line) for line in as_text(rows).split("\n\n")[0].splitlines()[1:]}) == 1, "columns are aligned"
    assert as_text(rows).count("*") == 1 + sum(found.exceeds_noise is True for found in rows)
