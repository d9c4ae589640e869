"""summary.json is read, and what is damaged or foreign is refused in one line that names the key."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_ds.errors import ConfigError, DogeError, RunError
from doge_ds.reporting.summaries import Estimate, read_summaries, read_summary
from tests.reporting.comparisons import DOMAINS, estimate, summary_of, write_summary

numbers = st.floats(-1e6, 1e6)


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = summary_of(tasks=["sciq"])
    summary = read_summary(write_summary(tmp_path, written))
    assert list(summary.mixtures) == ["uniform", "natural", "doge", "doremi", "mu 0.1"]
    assert list(summary.measured) == ["uniform", "natural", "doge", "doremi"]
    doge, found = summary.mixtures["doge"], written["mixtures"]["doge"]
    difference = doge.difference("all")
    assert difference is not None
    assert difference.by_seed == {int(seed): value for seed, value in _of(found, "all")["by_seed"].items()}
    assert (difference.low, difference.mean, difference.high) == tuple(
        _of(found, "all")[key] for key in ("low", "mean", "high")
    )
    assert doge.difference("nowhere") is None
    assert summary.mixtures["uniform"].difference("all") is None
    assert set(summary.domains) == set(DOMAINS)
    weights = [doge.weights[name].mean or 0 for name in summary.domains]
    assert weights == sorted(weights, reverse=True)


def _of(mixture: dict[str, Any], group: str) -> dict[str, Any]:
    return dict(mixture["differences"]["groups"][group])


def test_the_side_of_an_interval() -> None:
    sides = [
        Estimate(by_seed={}, mean=0.0, low=low, high=high).side
        for low, high in ((-0.2, -0.1), (0.1, 0.2), (-0.1, 0.2), (0.0, 0.2), (-0.1, 0.0), (0.0, 0.0))
    ]
    assert sides == [-1, 1, 0, 0, 0, 0]
    assert Estimate(by_seed={0: 0.1}, mean=0.1).side is None


@given(st.dictionaries(st.integers(0, 99), st.none() | numbers, max_size=6))
def test_seeds_and_range_are_of_those_that_have_a_number(values: dict[int, float | None]) -> None:
    found = Estimate.model_validate(json.loads(json.dumps(estimate(values))))
    known = [value for value in values.values() if value is not None]
    assert found.seeds == len(known)
    assert found.range == ((min(known), max(known)) if known else None)


def test_comparisons_of_one_name_are_told_apart_and_none_is_read_twice(tmp_path: Path) -> None:
    one, two = (write_summary(tmp_path / folder, summary_of("same", seeds=(0,))) for folder in "ab")
    other = write_summary(tmp_path, summary_of("other", seeds=(0,)))
    assert [file.title for file in read_summaries([one, other, two])] == [f"same ({one})", "other", f"same ({two})"]
    with pytest.raises(RunError, match=r"summary\.json: is named twice; name each comparison once"):
        read_summaries([one, other, tmp_path / "b/../a/same/summary.json"])


def _set(*place: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        for key in place[:-1]:
            values = values[key]
        values[place[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("version", to=2), r"version: is damaged \(Input should be 1\)"),
        (_set("seeds", to=[]), "seeds: is damaged"),
        (_set("groups", to={}), "groups: is damaged"),
        (_set("mixtures", to={}), "mixtures: is damaged"),
        (_set("against", to="gone"), "against 'gone', which is none of its mixtures"),
        (_set("mixtures", "doge", "against", to="gone"), "against 'gone', which is none of its mixtures"),
        (_set("mixtures", "doge", "weights", "news", "mean", to="nan"), "mixtures.doge.weights.news.mean: is damaged"),
        (_set("mixtures", "doge", "weights", "news", "low", to=None), "an interval with one end"),
        (_set("mixtures", "doge", "weights", "news", "low", to=7), "low is above high"),
        (_set("mixtures", "doge", "weights", "news", "by_seed", to={"x": 1}), "mixtures.doge.weights.news.by_seed"),
        (_set("mixtures", "doge", "gram_cosines", "rows", to=["a"]), "no table of 1 rows and 5 columns"),
        (_set("mixtures", "doge", "gram_cosines", "columns", to=["a"] * 5), "a row or a column is named twice"),
        (_set("mixtures", "doge", "gram_cosines", "values", 0, 1, to=1.5), "gram_cosines.values.0.1: is damaged"),
        (_set("mixtures", "doge", "trajectory", "steps", 1, to=10), "steps do not rise"),
        (_set("mixtures", "doge", "trajectory", "weight", "news", to=[0.1]), "news has 1 weights at 60 steps"),
        (_set("mixtures", "doge", "trajectory", "weight", "news", 0, to=-1), "trajectory.weight.news.0: is damaged"),
    ],
)
def test_damage_is_one_line_with_its_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    summary = summary_of()
    change(summary)
    file = write_summary(tmp_path, summary)
    with pytest.raises(RunError, match=message) as refused:
        read_summary(file)
    assert str(refused.value).startswith(f"{file}")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{}", RunError, "version: is damaged"),
        ('{"version": 1, "models": ["a", "b"], "rows": []}', RunError, "name: is damaged"),  # comparison.json
        ("[]", ConfigError, "holds no JSON object"),
        ('{"version": 1', ConfigError, "line 1, column"),
        ("", ConfigError, "is no JSON"),
    ],
)
def test_what_is_no_summary(tmp_path: Path, text: str, kind: type[DogeError], message: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(kind, match=message):
        read_summary(tmp_path / "summary.json")


def test_numbers_that_are_none_and_parts_that_are_not_there_are_read(tmp_path: Path) -> None:
    summary = summary_of()
    text = json.dumps(summary)
    text = re.sub(r'"mean": -?\d[^,}]*', '"mean": NaN', text)
    text = re.sub(r'"trajectory": \{.*?\}\}', '"trajectory": null', text)
    (tmp_path / "summary.json").write_text(text)
    assert read_summary(tmp_path / "summary.json").mixtures["doge"].weights["news"].mean is None
    bare = {"version": 1, "name": "n", "against": "u", "seeds": [0], "complete": False, "groups": {"all": []}}
    (tmp_path / "summary.json").write_text(json.dumps({**bare, "mixtures": {"u": {"against": "u"}}}))
    assert not read_summary(tmp_path / "summary.json").measured
