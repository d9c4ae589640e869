"""Tables of a comparison: the numbers in their cells."""

import math
from pathlib import Path
from typing import Any

import pytest

from doge_ds.reporting import comparison_tables as tables
from doge_ds.reporting.cells import NOTHING, SHADES, Table, interval, number, signed
from doge_ds.reporting.summaries import Estimate, Summary, SummaryFile
from tests.reporting.comparisons import DOMAINS, METHODS, estimate, summary_of


def read(**options: Any) -> Summary:
    return Summary.model_validate(summary_of(**options))


def texts(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row.header: [cell.text for cell in row.cells] for row in [*table.rows, *table.folded]}


def strong(table: Table | None) -> dict[str, list[bool]]:
    assert table is not None
    return {row.header: [cell.strong for cell in row.cells] for row in table.rows}


def test_averages_have_differences_with_intervals_and_how_many_seeds_agree() -> None:
    summary = read()
    table = tables.average_table(summary, "all")
    found = texts(table)
    assert list(found) == ["uniform", "natural", "doge", "doremi"]
    doge, difference = summary.mixtures["doge"].average("all"), summary.mixtures["doge"].difference("all")
    assert doge is not None
    assert doge.mean is not None
    assert difference is not None
    assert found["doge"] == [
        number(doge.mean, 4),
        number(math.exp(doge.mean)),
        signed(difference.mean or 0, 4),
        interval(difference.low, difference.high, 4),
        "3 of 3",
        "uniform",
    ]
    assert found["natural"][4] == "0 of 3"
    assert found["uniform"][2:] == [NOTHING, NOTHING, "3 measured", NOTHING]
    bold = strong(table)
    assert [bold[name][0] for name in bold] == [False, False, True, False]  # the lowest
    assert [bold[name][2] for name in bold] == [False, True, True, False]  # the interval excludes 0
    assert table.caption.startswith("Average over all 5 domains, ")


def test_a_group_has_its_own_averages() -> None:
    summary = read(groups={"trained on": DOMAINS[:1], "never seen": DOMAINS[1:]})
    seen, unseen = (tables.average_table(summary, group) for group in summary.groups)
    assert seen.caption.startswith('Average over "trained on" (1 domain), ')
    assert unseen.caption.startswith('Average over "never seen" (4 domains), ')
    assert texts(seen)["doge"] != texts(unseen)["doge"]


def test_a_mixture_is_shown_in_the_groups_that_it_counts_in() -> None:
    """As where each domain in turn is the target: the others trained on it."""
    values = summary_of(groups={"yaml": DOMAINS[:1], "prose": DOMAINS[1:2]})
    for name, of in values["mixtures"].items():
        if name != "uniform" and of["average_log_perplexity"]:
            left = "prose" if name == "doge" else "yaml"
            del of["average_log_perplexity"][left]
            del of["differences"]["groups"][left]
    summary = Summary.model_validate(values)
    assert list(texts(tables.average_table(summary, "yaml"))) == ["uniform", "doge"]
    assert list(texts(tables.average_table(summary, "prose"))) == ["uniform", "natural", "doremi"]
    front = tables.front_table([SummaryFile(Path("s.json"), "one", summary)])
    assert [(row.header, *(cell.text for cell in row.cells[:2])) for row in front.rows] == [
        ("one", "uniform", "yaml"),
        ("one", "doge", "yaml"),
        ("one", "uniform", "prose"),
        ("one", "natural", "prose"),
        ("one", "doremi", "prose"),
    ]


def test_one_seed_has_no_interval_and_nothing_is_bold_but_the_lowest() -> None:
    table = tables.average_table(read(seeds=(4,)), "all")
    assert {row[3] for row in texts(table).values()} == {NOTHING}
    assert not any(cells[2] for cells in strong(table).values())


def test_differences_of_domains_are_shaded_by_their_size_and_sign() -> None:
    summary = read()
    table = tables.difference_table(summary)
    assert table is not None
    assert list(table.columns) == ["natural", "doge", "doremi"]
    assert "to uniform" in table.caption
    cells = {
        (row.header, column): cell for row in table.rows for column, cell in zip(table.columns, row.cells, strict=True)
    }
    found = {
        (domain, name): mixture.differences.domains[domain]
        for name, mixture in summary.measured.items()
        if mixture.differences
        for domain in DOMAINS
    }
    largest = max(abs(each.mean or 0) for each in found.values())
    for place, each in found.items():
        assert cells[place].text == signed(each.mean or 0, 4)
        assert cells[place].shade == round(-SHADES * (each.mean or 0) / largest)
        assert cells[place].strong == bool(each.side)
    assert {cells[domain, "natural"].shade or 0 for domain in DOMAINS} <= set(range(-SHADES, 0))
    assert {cells[domain, "doge"].shade or 0 for domain in DOMAINS} <= set(range(1, SHADES + 1))


def test_mixtures_that_are_compared_with_others_say_so_in_their_columns() -> None:
    values = summary_of()
    values["mixtures"]["doremi"]["against"] = "natural"
    table = tables.difference_table(Summary.model_validate(values))
    assert table is not None
    assert list(table.columns) == ["natural, to uniform", "doge, to uniform", "doremi, to natural"]
    assert "to what each is compared with" in table.caption


def test_levels_and_bits_have_every_mixture_and_the_lowest_is_bold() -> None:
    summary = read()
    for table, of in (
        (tables.log_perplexity_table(summary), lambda mixture: mixture.log_perplexity),
        (tables.bits_table(summary), lambda mixture: mixture.bits_per_byte),
    ):
        found, bold = texts(table), strong(table)
        for domain in DOMAINS:
            means = [of(mixture)[domain].mean for mixture in summary.measured.values()]
            assert found[domain] == [number(mean, 4) for mean in means]
            assert bold[domain] == [mean == min(means) for mean in means]


def test_the_worst_domain() -> None:
    summary = read()
    found = texts(tables.worst_table(summary))
    worst = summary.mixtures["doge"].worst_domain
    assert worst is not None
    assert found["doge"][:3] == [worst.name, number(worst.log_perplexity.mean, 4), worst.difference_name]
    assert found["uniform"][2:] == [NOTHING, NOTHING, NOTHING]


def test_accuracies_have_their_mean_last() -> None:
    summary = read(tasks=["mean_of_nothing", "sciq"])
    table = tables.accuracy_table(summary)
    assert table is not None
    assert [row.header for row in table.rows] == ["mean_of_nothing", "sciq", "mean"]
    assert list(table.columns) == ["uniform", "natural", "doge", "doremi"]
    accuracy = (summary.mixtures["doge"].accuracy or {})["sciq"]
    low, high = accuracy.range or (0, 0)
    assert texts(table)["sciq"][2] == f"{number(accuracy.mean, 4)} ({number(low, 4)} to {number(high, 4)})"
    assert tables.accuracy_table(read()) is None


def test_missing_numbers_are_dashes() -> None:
    values = summary_of()
    doge = values["mixtures"]["doge"]
    del doge["log_perplexity"]["news"], doge["differences"]["domains"]["news"]
    doge["average_log_perplexity"]["all"] = estimate({0: None, 1: 3.2, 2: 3.3})
    doge["differences"]["groups"] = {}
    summary = Summary.model_validate(values)
    assert texts(tables.average_table(summary, "all"))["doge"] == [*[NOTHING] * 4, "2 measured", NOTHING]
    assert texts(tables.difference_table(summary))["news"][1] == NOTHING
    found = tables.log_perplexity_table(summary)
    assert texts(found)["news"][2] == NOTHING
    assert not any(strong(found)["news"])  # the lowest of those that are there is not the lowest


def test_a_comparison_without_bases_has_no_tables_of_them() -> None:
    summary = read(without_bases=list(METHODS))
    assert [
        table(summary)
        for table in (tables.difference_table, tables.bits_table, tables.worst_table, tables.accuracy_table)
    ] == [None] * 4


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, NOTHING),
        ({0: 0.25}, "0.2500"),
        ({0: 0.25, 1: 0.25}, "0.2500"),
        ({0: 0.2, 3: 0.3}, "0.2500 (0.2000 to 0.3000)"),
    ],
)
def test_spread_text(values: dict[int, float], text: str) -> None:
    assert tables.spread_text(Estimate.model_validate(estimate(values))) == text
