"""Tables: the numbers in their cells."""

import json
from pathlib import Path

import numpy as np
import pytest

from doge_ds.config import BaseConfig, ProxyConfig, config_hash, load_config
from doge_ds.errors import ConfigError
from doge_ds.reporting import tables
from doge_ds.reporting.cells import NOTHING, ROWS_SHOWN, SHADES, Table, duration, number, signed, significant
from doge_ds.reporting.heat_map import HEAT_MAP_ROWS
from doge_ds.reporting.run_files import RunRecord, read_runs
from doge_ds.training.run import RunDirectory
from tests.reporting.run_directories import diverged, edit_metrics, make_base, make_proxy, names, write

ROOT = Path(__file__).resolve().parents[2]
MIXTURE = {"python": 0.3, "prose": 0.7}


def texts(table: Table) -> dict[str, list[str]]:
    return {row.header: [cell.text for cell in row.cells] for row in [*table.rows, *table.folded]}


def read(*paths: Path) -> list[RunRecord]:
    return read_runs(paths)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, NOTHING), (float("nan"), NOTHING), (1234.567, "1,234.57"), (2.5e300, "2.5e+300"), (0.0, "0.00")],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NOTHING),
        (0.038, "0.0380"),
        (10.0, "10.0"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (3e-7, "3e-07"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_signed_numbers_and_durations() -> None:
    assert [signed(value) for value in (1.2, -1.2, 0.001, -0.001, -1234.0)] == [
        "+1.20",
        "\N{MINUS SIGN}1.20",
        "0.00",
        "0.00",
        "\N{MINUS SIGN}1,234.00",
    ]
    assert [duration(value) for value in (None, 12.34, 59.99, 200, 7500)] == [
        NOTHING,
        "12.3 s",
        "60.0 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


def test_summary_says_how_far_each_run_came_and_shows_rates_where_they_are(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy", steps=90, logged=(10, 20))
    base = make_base(tmp_path / "base", MIXTURE)
    found = texts(tables.summary_table(read(proxy, base)))
    assert found["state"] == ["not finished", "finished"]
    assert found["steps done"] == ["20 of 90", "40 of 40"]
    assert found["tokens read"] == ["2,000", "4,000"]
    assert found["wall time"] == ["40.0 s", "1 min 20 s"]
    assert found["tokens per second, mean"] == ["50", "50"]
    assert not [header for header in found if "FLOP" in header or "skipped" in header]
    edit_metrics(base, 0, mfu=0.25, tflops_per_device=10.0, applied=False)
    edit_metrics(base, 1, mfu=0.35, tflops_per_device=None)
    found = texts(tables.summary_table(read(proxy, base)))
    assert found["model FLOPs utilisation, median, %"] == [NOTHING, "30.0"]
    assert found["TFLOP/s per device, median"] == [NOTHING, "10.0"]
    assert found["logged steps skipped by DeepSpeed"] == ["0", "1"]
    edit_metrics(proxy, 1, tflops_per_device=0.0384)
    found = texts(tables.summary_table(read(proxy, base)))
    assert found["TFLOP/s per device, median"] == ["0.0384", "10.0"]


def test_mixtures_stand_side_by_side_largest_first(tmp_path: Path) -> None:
    one, two = make_proxy(tmp_path / "one", ["a", "b"]), make_proxy(tmp_path / "two", ["b", "c"])
    for path, weights in ((one, {"a": 0.2, "b": 0.8}), (two, {"b": 0.99988, "c": 0.00012})):
        (path / "mixture.json").write_text(json.dumps({"version": 1, "domains": weights}))
    table = tables.mixture_table(read(one, two))
    assert table.columns == ["one: mean weight", "to uniform", "two: mean weight", "to uniform"]
    assert [row.header for row in table.rows] == ["b", "a", "c"]
    assert texts(table)["b"] == ["0.8000", "\N{MULTIPLICATION SIGN}1.60", "0.9999", "\N{MULTIPLICATION SIGN}2.00"]
    assert texts(table)["a"][2:] == [NOTHING, NOTHING]
    assert texts(table)["c"][2] == "0.00012"
    assert [table.rows[0].cells[2].bar, table.rows[1].cells[2].bar] == [1.0, None]


def test_rows_that_are_too_many_are_folded_not_lost(tmp_path: Path) -> None:
    (run,) = read(make_proxy(tmp_path / "a", names(200)))
    table = tables.mixture_table([run])
    assert len(table.rows) == ROWS_SHOWN
    assert len(table.folded) == 200 - ROWS_SHOWN
    assert texts(table).keys() == set(names(200))


def test_shares_wanted_and_achieved(tmp_path: Path) -> None:
    path = make_base(tmp_path / "a", MIXTURE)
    edit_metrics(path, 1, **{"achieved_share/prose": 0.695, "achieved_share/python": 0.305})
    found = texts(tables.share_table(read(path)[0]))
    assert found == {"prose": ["70.00", "69.50", "\N{MINUS SIGN}0.500"], "python": ["30.00", "30.50", "+0.500"]}
    empty = make_base(tmp_path / "b", MIXTURE, logged=())
    assert texts(tables.share_table(read(empty)[0]))["prose"] == ["70.00", NOTHING, NOTHING]


def gram_of(*rows: list[float]) -> list[list[float]]:
    matrix = np.array(rows)
    product: list[list[float]] = (matrix @ matrix.T).tolist()
    return product


def test_the_heat_map_puts_similar_domains_side_by_side_and_marks_targets(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "a", ["p", "q", "r", "s"], target=["t"], logged=(40,))
    edit_metrics(path, 0, gram=gram_of([1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 1, 0.1], [0.2, -1, 0]))
    table = tables.cosine_table(read(path)[0])
    order = [row.header for row in table.rows]
    assert list(table.columns) == order
    assert abs(order.index("p") - order.index("r")) == 1
    assert abs(order.index("q") - order.index("s")) == 1
    assert {row.header: row.note for row in table.rows} == {"p": "", "q": "", "r": "", "s": "", "t": "target"}
    found = {
        (row.header, column): cell for row in table.rows for column, cell in zip(table.columns, row.cells, strict=True)
    }
    assert (found["p", "p"].text, found["p", "p"].shade) == ("1", None)
    assert found["q", "t"].text == "\N{MINUS SIGN}.98"
    assert found["q", "t"].shade == 0
    assert found["q", "s"].shade == found["p", "r"].shade == SHADES
    assert found["p", "q"].text == ".00"


def test_a_heat_map_of_200_domains_shows_the_target_and_the_largest_weights(tmp_path: Path) -> None:
    (run,) = read(make_proxy(tmp_path / "a", names(200), target=["domain_000", "outside"]))
    shown = {run.metrics.names("loss/")[row] for row in tables.heat_map_rows(run)}
    assert shown == {"domain_000", "outside", *names(200)[-(HEAT_MAP_ROWS - 2) :]}


@pytest.mark.parametrize("domains", [["a"], ["a", "b"]])
def test_a_heat_map_of_few_rows(tmp_path: Path, domains: list[str]) -> None:
    (run,) = read(make_proxy(tmp_path / "a", domains, target="all"))
    table = tables.cosine_table(run)
    assert [row.header for row in table.rows] == domains


def test_the_row_of_the_even_mix_is_called_so(tmp_path: Path) -> None:
    (run,) = read(make_proxy(tmp_path / "a", ["a", "b"], target="mix"))
    assert {row.header: row.note for row in tables.cosine_table(run).rows} == {"a": "", "b": "", "<mix>": "even mix"}


def test_perplexities_with_differences_to_the_first(tmp_path: Path) -> None:
    one = make_base(tmp_path / "one", MIXTURE, {"python": 20.0, "prose": 80.0, "huge": None})
    two = make_base(tmp_path / "two", MIXTURE, {"python": 25.0, "prose": 64.0, "huge": 9.0})
    table = tables.perplexity_table(read(one, two), targets=["prose"])
    assert table.columns == ["one", "two", "difference to one", "in %"]
    found = texts(table)
    assert found["python"] == ["20.00", "25.00", "+5.00", "+25.0"]
    assert found["prose"] == ["80.00", "64.00", "\N{MINUS SIGN}16.00", "\N{MINUS SIGN}20.0"]
    assert found["huge"] == [NOTHING, "9.00", NOTHING, NOTHING]
    assert found["arithmetic mean"] == [NOTHING, "32.67", NOTHING, NOTHING]
    assert found["mean log-perplexity, nats"][3] == NOTHING
    assert {row.header: row.note for row in table.rows}["prose"] == "target"
    strong = {row.header: [cell.strong for cell in row.cells[:2]] for row in table.rows}
    assert strong["python"] == [True, False]
    assert strong["prose"] == [False, True]
    assert strong["huge"] == [False, False]


def test_a_base_that_diverged_has_dashes_and_no_difference(tmp_path: Path) -> None:
    one = make_base(tmp_path / "one", MIXTURE, {"python": 20.0})
    two = make_base(tmp_path / "two", MIXTURE, {"python": 20.0})
    write(two / "results.json", diverged(["python"]))
    for first, second, shown in ((one, two, ["20.00", NOTHING]), (two, one, [NOTHING, "20.00"])):
        table = tables.perplexity_table(read(first, second), [])
        assert texts(table)["python"] == texts(table)["geometric mean"] == [*shown, NOTHING, NOTHING]
        assert not [cell for row in table.rows for cell in row.cells if cell.strong]


def test_averages_over_other_domains_are_not_compared(tmp_path: Path) -> None:
    one = make_base(tmp_path / "one", MIXTURE, {"python": 20.0, "prose": 80.0})
    two = make_base(tmp_path / "two", MIXTURE, {"python": 25.0})
    runs = read(one, two)
    assert not tables.has_common_domains(runs)
    found = texts(tables.perplexity_table(runs, []))
    assert found["geometric mean"] == ["40.00", "25.00", NOTHING, NOTHING]
    assert found["prose"] == ["80.00", NOTHING, NOTHING, NOTHING]


def test_configuration_has_facts_and_keys_and_marks_what_differs(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy")
    learned = json.loads((proxy / "mixture.json").read_text())["domains"]
    runs = read(proxy, make_base(tmp_path / "a", learned), make_base(tmp_path / "b", MIXTURE, steps=50))
    table = tables.configuration_table(runs[1:], runs)
    found, notes = texts(table), {row.header: row.note for row in table.rows}
    assert found["mixture"] == ["learned by proxy", "of no proxy in this report"]
    assert found["training.steps"] == ["40", "50"]
    assert notes["training.steps"] == "differs"
    assert found["store fingerprint"] == ["0123456789abcdef"] * 2
    assert found["tokenizer sha256"] == ["fedcba98" * 8] * 2
    assert notes["tokenizer sha256"] == ""
    of_proxy = texts(tables.configuration_table(runs[:1], runs))
    assert of_proxy["mixture config_sha256"] == ["abc123"]
    assert of_proxy["mixture accepted_steps"] == ["39"]
    assert [len(text) for text in (*found["config sha256"], *of_proxy["config sha256"])] == [16, 16, 16]
    assert notes["config sha256"] == "differs"
    assert of_proxy["doge.target"] == ["mix"]
    assert "doge.mu" not in of_proxy  # the file does not say, so the page does not either


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs/runs").glob("*.json")), ids=lambda path: path.stem)
def test_the_hash_of_a_run_directory_is_that_which_its_mixture_records(tmp_path: Path, path: Path) -> None:
    is_proxy = "doge" in json.loads(path.read_text())
    config = load_config(ProxyConfig if is_proxy else BaseConfig, path, ["deepspeed.wandb.enabled=true"])
    run = make_proxy(tmp_path / "run", logged=()) if is_proxy else make_base(tmp_path / "run", MIXTURE)
    facts = json.loads((run / "run.json").read_text())
    RunDirectory(tmp_path / "written", config, facts, "mixture.json" if is_proxy else "hf", resume="auto").create()
    (tmp_path / "written/config.json").replace(run / "config.json")
    found = texts(tables.configuration_table(read(run), read(run)))
    assert found["config sha256"] == [config_hash(config)]  # train_proxy.py writes this into mixture.json
    assert not [key for key in found if "wandb" in key]


def test_deepspeed_settings_are_shown_without_keys_to_accounts(tmp_path: Path) -> None:
    run = make_proxy(tmp_path / "proxy")
    values = json.loads((run / "config.json").read_text())
    settings = {"bf16": {"enabled": True}, "comet": {"api_key": "SECRET"}}
    write(run / "config.json", {**values, "deepspeed": settings})
    found = texts(tables.configuration_table(read(run), read(run)))
    assert found["deepspeed.bf16.enabled"] == ["true"]
    assert "SECRET" not in str(found)
    write(run / "config.json", {**values, "deepspeed": 3})
    with pytest.raises(ConfigError, match="deepspeed"):
        read(run)
