"""Sentences of a comparison: which mixture is the best, and whether that is shown."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.reporting import comparison_words as words
from doge_ds.reporting.cells import MINUS, interval, number
from doge_ds.reporting.comparison_tables import average_table, log_perplexity_table
from doge_ds.reporting.interval_charts import IntervalPanel
from doge_ds.reporting.summaries import Estimate, Summary
from tests.reporting.comparisons import METHODS, estimate, summary_of

# Log-perplexities of three seeds, and their differences to the first.
UNIFORM = {0: 3.512, 1: 3.547, 2: 3.498}
BETTER = {0: 3.471, 1: 3.502, 2: 3.461}
WORSE = {0: 3.555, 1: 3.601, 2: 3.547}
SAME = {0: 3.501, 1: 3.552, 2: 3.489}


def of(averages: Mapping[str, Mapping[int, float | None]], **changes: Any) -> Summary:
    """A comparison of these averages over one group; differences to the first."""
    against = next(iter(averages))
    mixtures = {}
    for name, values in averages.items():
        less = {
            seed: None if value is None or (other := averages[against].get(seed)) is None else value - other
            for seed, value in values.items()
        }
        mixtures[name] = {
            "against": against,
            "log_perplexity": {"a": estimate(values)},
            "average_log_perplexity": {"all": estimate(values)},
            "differences": None
            if name == against
            else {"domains": {"a": estimate(less)}, "groups": {"all": estimate(less)}},
        }
    known = {"version": 1, "name": "n", "seeds": [0, 1, 2], "complete": True, "groups": {"all": ["a", "b"]}}
    return Summary.model_validate({**known, "against": against, "mixtures": mixtures, **changes})


def test_averages_of_different_seeds_name_no_best_mixture() -> None:
    summary = of({"uniform": {0: 3.4, 1: 3.6}, "doge": {0: 3.45}}, complete=False)
    assert words.answers(summary)[0] == (
        "Over all 2 domains, no mixture is the best yet: their averages are of different seeds."
    )
    table = average_table(summary, "all")
    assert not any(row.cells[0].strong for row in table.rows)
    assert not any(cell.strong for row in log_perplexity_table(summary).rows for cell in row.cells)


def test_the_best_mixture_and_that_its_interval_excludes_0() -> None:
    summary = of({"uniform": UNIFORM, "doge": BETTER, "natural": WORSE, "doremi": SAME})
    first, second = words.answers(summary)
    difference = summary.mixtures["doge"].difference("all")
    assert difference is not None
    assert first == (
        f"Over all 2 domains, doge has the lowest average log-perplexity of 4 mixtures: {number(3.478, 4)} nats per "
        f"token, mean over 3 seeds. That is {number(0.041, 4)} lower than uniform, with a 95% interval of "
        f"{interval(difference.low, difference.high, 4)} over 3 seeds. The interval excludes 0."
    )
    assert second == (
        "The intervals of differences over all 2 domains lie below 0 (better) for doge; above 0 (worse) for natural; "
        "on both sides of 0 (nothing shown) for doremi."
    )


def test_an_interval_across_0_shows_nothing() -> None:
    (only,) = words.answers(of({"uniform": UNIFORM, "doremi": SAME}))
    assert "lower than uniform, with a 95% interval of" in only
    assert only.endswith("The interval contains 0: nothing is shown.")
    assert "excludes" not in only


def test_one_seed_shows_nothing() -> None:
    (only,) = words.answers(of({"uniform": {4: 3.5}, "doge": {4: 3.4}}))
    assert "3.4000 nats per token, of 1 seed. That is 0.1000 lower than uniform" in only
    assert only.endswith("; with one seed there is no interval, so nothing is shown.")


def test_where_the_first_is_the_best_the_closest_is_named() -> None:
    (only, sides) = words.answers(of({"uniform": UNIFORM, "natural": WORSE, "far": {0: 3.9, 1: 4.0, 2: 3.95}}))
    assert "uniform has the lowest average log-perplexity of 3 mixtures" in only
    assert "It is what others are compared with; the closest, natural, is 0.0487 higher than uniform" in only
    assert only.endswith("The interval excludes 0.")
    assert "above 0 (worse) for natural, far." in sides


def test_a_name_with_a_comma_is_quoted_in_a_list() -> None:
    (_, sides) = words.answers(of({"uniform": UNIFORM, "natural": WORSE, "far, far": {0: 3.9, 1: 4.0, 2: 3.95}}))
    assert sides.endswith('above 0 (worse) for natural, "far, far".')


def test_a_difference_that_is_not_known_is_called_so() -> None:
    lost = {0: 3.512, 1: None, 2: 3.498}
    summary = of({"uniform": lost, "doge": BETTER})
    (only,) = words.answers(summary)
    assert only.startswith("Only doge has an average log-perplexity over all 2 domains")
    assert "Without a finite average of every seed, as where a base diverged: uniform." in words.notes(summary)
    (only,) = words.answers(of({"uniform": {0: None}, "doge": {0: 3.4}, "natural": {0: 3.5}}))
    assert only.endswith("Its difference to uniform is not known: seeds that both have are missing, or one diverged.")
    (only,) = words.answers(of({"uniform": {0: None}, "doge": {0: None}}))
    assert only.startswith("No average over all 2 domains is a number")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["doge", "doremi", "mu 0.1", "natural"]),
        st.dictionaries(st.integers(0, 4), st.none() | st.floats(1, 9), max_size=4),
        max_size=3,
    ),
    st.dictionaries(st.integers(0, 4), st.none() | st.floats(1, 9), min_size=1, max_size=4),
)
def test_nothing_is_called_shown_without_an_interval_that_excludes_0(
    others: dict[str, dict[int, float | None]], first: dict[int, float | None]
) -> None:
    summary = of({"uniform": first, **others})
    text = " ".join(words.answers(summary))
    sides = {mixture.difference("all").side for mixture in summary.mixtures.values() if mixture.difference("all")}
    if not sides & {-1, 1}:
        assert "excludes 0" not in text
        assert "(better)" not in text
        assert "(worse)" not in text


def test_weights_that_were_learned_are_said_and_what_has_no_base() -> None:
    summary = Summary.model_validate(summary_of())
    answers, notes = words.answers(summary), words.notes(summary)
    first = summary.domains[0]
    assert any(text.startswith(f"doge learned {first} 0.") for text in answers)
    assert not any(text.startswith("uniform learned") for text in answers)
    assert 'Without measured bases: "mu 0.1".' in notes
    assert any("of the 3 intervals" in note for note in notes)
    assert not any("not finished" in note for note in notes)


def test_a_comparison_of_proxies_alone() -> None:
    summary = Summary.model_validate(summary_of(without_bases=list(METHODS)))
    assert words.answers(summary)[0] == "No base of this comparison has been measured on held-out text."
    assert len(words.answers(summary)) == 4
    sweep = {"uniform": None, **{f"mu {number}": "doge" for number in range(9)}}
    summary = Summary.model_validate(summary_of(methods=sweep, without_bases=list(sweep)))
    *_, fifth, last = words.answers(summary)
    assert fifth.startswith('"mu 4" learned ')
    assert last == "The table of weights has those of the other 4."


def test_an_incomplete_comparison_says_how_many_seeds_each_has() -> None:
    summary = of({"uniform": UNIFORM, "doge": {0: 3.4}}, complete=False)
    note = next(note for note in words.notes(summary) if "not finished" in note)
    assert "Of 3 seeds, there are numbers of: uniform 3, doge 1." in note
    waiting = {"version": 1, "name": "n", "against": "doge", "seeds": [0], "complete": False, "groups": {"all": ["a"]}}
    summary = Summary.model_validate({**waiting, "mixtures": {"doge": {"against": "doge", "method": "doge"}}})
    assert "Of 1 seed, there are numbers of: doge 0." in words.notes(summary)[0]
    assert words.answers(summary)[1] == "doge has learned no weights yet."


def test_charts_in_words() -> None:
    rows = {"doge": Estimate.model_validate(estimate({0: -0.041, 1: -0.045, 2: -0.037}))}
    text = words.intervals_in_words([IntervalPanel("Average", rows)], "Differences")
    ends = interval(rows["doge"].low, rows["doge"].high, 4)
    assert text == f"Dot chart. Differences. Average: doge {MINUS}0.0410 ({ends})."


@pytest.mark.parametrize(
    ("cosines", "note"),
    [
        ([[1, 0.5, -0.25], [0.5, 1, 0.125], [-0.25, 0.125, 1]], f"a and b (+0.50); least: a and c ({MINUS}0.25)."),
        ([[1, np.nan, 0.5], [np.nan, 1, 0.25], [0.5, 0.25, 1]], "a and c (+0.50); least: b and c (+0.25)."),
        (np.full((3, 3), np.nan), ""),
    ],
)
def test_most_and_least_alike(cosines: Any, note: str) -> None:
    found = words.cosines_note(["a", "b", "c"], ["a", "b", "c"], np.array(cosines))
    assert found == (f"Most alike: {note}" if note else "")
