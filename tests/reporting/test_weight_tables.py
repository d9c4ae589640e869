"""Tables of a comparison's mixtures: weights, stability, cost, cosines, places."""

from typing import Any

import numpy as np
import pytest

from doge_ds.reporting import weight_tables as tables
from doge_ds.reporting.cells import NOTHING, SHADES, Table, duration, number
from doge_ds.reporting.comparison_tables import spread_text
from doge_ds.reporting.heat_map import HEAT_MAP_ROWS
from doge_ds.reporting.summaries import Cosines, Summary
from doge_ds.reporting.tables import weight_text
from tests.reporting.comparisons import METHODS, summary_of
from tests.reporting.run_directories import names


def read(**options: Any) -> Summary:
    return Summary.model_validate(summary_of(**options))


def texts(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row.header: [cell.text for cell in row.cells] for row in [*table.rows, *table.folded]}


def test_what_was_compared() -> None:
    values = summary_of()
    del values["mixtures"]["doremi"]["log_perplexity"]["python"]["by_seed"]["2"]
    found = texts(tables.origin_table(Summary.model_validate(values)))
    assert found["uniform"] == ["given: uniform", NOTHING, "3 of 3", "3 of 3"]
    assert found["doge"] == ["learned by DoGE", "uniform", "3 of 3", "3 of 3"]
    assert found["doremi"] == ["learned by DoReMi", "uniform", "3 of 3", "2 of 3"]
    assert found["mu 0.1"] == ["learned by DoGE", "uniform", "3 of 3", NOTHING]


def test_weights_have_their_range_over_seeds_and_the_largest_of_a_mixture_the_deepest_shade() -> None:
    summary = read()
    table = tables.weight_table(summary)
    assert table is not None
    assert list(table.columns) == list(METHODS)
    place = list(METHODS).index("doge")
    for row in table.rows:
        weight = summary.mixtures["doge"].weights[row.header]
        low, high = weight.range or (0, 0)
        text = f"{weight_text(weight.mean)} ({weight_text(low)} to {weight_text(high)})"
        assert row.cells[place].text == text
        assert row.cells[0].text == "0.2000"  # every seed's is the same
    assert max(row.cells[place].shade or 0 for row in table.rows) == SHADES
    last = tables.weight_table(summary, of_last_step=True)
    assert last is not None
    assert list(last.columns) == ["doge", "doremi", "mu 0.1"]
    assert texts(last) != texts(table)
    assert tables.weight_table(read(methods={"uniform": None}), of_last_step=True) is None


def test_stability_is_of_learned_mixtures() -> None:
    summary = read()
    found = texts(tables.stability_table(summary))
    assert list(found) == ["doge", "doremi", "mu 0.1"]
    stability = summary.mixtures["doge"].stability
    assert stability is not None
    assert found["doge"][0].startswith(f"{number(stability.half_to_end.mean, 4)} (")
    assert found["doge"][1] == number(stability.across_seeds, 4)
    apart = summary.mixtures["doge"].distance_from_against
    assert apart is not None
    assert found["doge"][3:] == [spread_text(apart), "uniform"]
    assert texts(tables.stability_table(read(seeds=(0,))))["doge"][1] == NOTHING
    assert tables.stability_table(read(methods={"uniform": None})) is None


def test_costs_and_what_comes_before_the_base() -> None:
    flops, seconds, tokens = (texts(table) for table in tables.cost_tables(read()))
    assert flops["doremi"] == ["1.19e+14", "1.27e+14", "8.31e+14", "1.08e+15", number(100 * (1.19 + 1.27) / 8.31, 1)]
    assert flops["uniform"] == [NOTHING, NOTHING, "8.31e+14", "8.31e+14", "0.0"]
    assert flops["mu 0.1"] == [NOTHING, "1.27e+14", NOTHING, "1.27e+14", NOTHING]
    assert seconds["doge"][:2] == [NOTHING, duration(98.1)]
    assert seconds["doge"][4] == number(100 * 98.1 / (412.5 + 7.4), 1)
    assert tokens["doge"] == [NOTHING, "983,040", "2,457,600", "3,440,640", "40.0"]
    assert tables.cost_tables(read())[1].caption.startswith("Wall time (2 cores, cpu) of one seed")


def test_costs_that_cannot_be_counted_are_dashes() -> None:
    values = summary_of()
    values["mixtures"]["doge"]["cost"]["proxy"]["flops"] = None
    values["mixtures"]["doremi"]["cost"]["base"]["flops"] = 0
    values["mixtures"]["natural"]["cost"] = {}
    found = texts(tables.cost_tables(Summary.model_validate(values))[0])
    assert (found["doge"][1], found["doge"][4], found["doremi"][4]) == (NOTHING, NOTHING, NOTHING)
    assert found["natural"] == [NOTHING] * 5
    for mixture in values["mixtures"].values():
        mixture["cost"] = {"total": {"flops": None, "seconds": None, "tokens": 7}}
    assert [table.caption[:6] for table in tables.cost_tables(Summary.model_validate(values))] == ["Tokens"]


def test_places_have_a_row_for_each_seed() -> None:
    table = tables.places_table(read())
    rows = [[row.header, *(cell.text for cell in row.cells)] for row in table.rows]
    assert len(rows) == 15
    assert rows[6] == [
        *("doge", "0", NOTHING, "stages/proxy-doge-s0-1a2b3c4d5e"),
        *("stages/base-doge-s0-2a3b4c5d6e", "stages/eval-doge-s0-3a4b5c6d7e"),
    ]


def test_the_heat_map_has_rows_and_columns_in_one_order_whatever_theirs_is() -> None:
    summary = read()
    doge = summary.mixtures["doge"]
    assert doge.gram_cosines is not None
    cosines = doge.gram_cosines
    turned = Cosines(rows=cosines.rows, columns=cosines.columns[::-1], values=[line[::-1] for line in cosines.values])
    for given in (cosines, turned):
        rows, columns, values = tables.shown_cosines(given, doge)
        assert rows == columns
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                known = cosines.values[cosines.rows.index(row)][cosines.columns.index(column)]
                assert values[i, j] == pytest.approx(known)


def test_rows_and_columns_that_differ_keep_their_order_and_none_is_nan() -> None:
    doge = read().mixtures["doge"]
    cosines = Cosines(rows=["python", "news"], columns=["target"], values=[[0.25], [None]])
    rows, columns, values = tables.shown_cosines(cosines, doge)
    assert (rows, columns) == (["python", "news"], ["target"])
    assert values[0, 0] == 0.25
    assert np.isnan(values[1, 0])


def test_a_large_heat_map_shows_what_is_not_trained_on_and_the_largest_weights() -> None:
    domains = names(60)
    doge = read(domains=domains).mixtures["doge"]
    assert doge.gram_cosines is not None
    square = np.eye(61).tolist()
    cosines = Cosines(rows=[*domains, "<mix>"], columns=[*domains, "<mix>"], values=square)
    rows, _, values = tables.shown_cosines(cosines, doge)
    weights = {name: weight.mean or 0 for name, weight in doge.weights.items()}
    largest = sorted(domains, key=lambda name: -weights[name])[: HEAT_MAP_ROWS - 1]
    assert set(rows) == {"<mix>", *largest}
    assert values.shape == (HEAT_MAP_ROWS, HEAT_MAP_ROWS)
    table = tables.cosine_table("doge", doge.model_copy(update={"gram_cosines": cosines}))
    assert table is not None
    assert {row.header: row.note for row in table.rows}["<mix>"] == "even mix"
    assert tables.cosine_table("uniform", read().mixtures["uniform"]) is None
