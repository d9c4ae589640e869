"""Few-shot accuracies and comparisons in the report."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from doge_ds.errors import ConfigError, RunError
from doge_ds.reporting.cells import MINUS
from doge_ds.reporting.evaluations import comparison_tables, read_comparison, task_table
from doge_ds.reporting.page import render_page
from doge_ds.reporting.run_files import read_runs
from tests.reporting.run_directories import make_base, results_of

ROWS: list[dict[str, Any]] = [
    {"measure": "log-perplexity", "of": "a", "model": "uniform", "value": 3.25},
    {"measure": "log-perplexity", "of": "a", "model": "doge", "value": 3.0, "difference": -0.25, "low": -0.3}
    | {"high": -0.2, "exceeds_noise": True},
    {"measure": "accuracy", "of": "sciq", "model": "uniform", "value": 0.5},
    {"measure": "accuracy", "of": "sciq", "model": "doge", "value": 0.5125, "difference": 0.0125, "low": -0.02}
    | {"high": 0.05, "exceeds_noise": False},
    {"measure": "accuracy", "of": "wic", "model": "uniform", "value": 0.5},
    {"measure": "accuracy", "of": "wic", "model": "doge", "value": 1.0, "difference": 0.5},
]

MIXTURE = {"a": 0.7, "b": 0.3}


def write_comparison(folder: Path, **changes: Any) -> Path:
    file = folder / "comparison.json"
    file.write_text(json.dumps({"version": 1, "models": ["uniform", "doge"], "rows": ROWS} | changes))
    return file


def test_a_comparison_is_a_table_for_each_measure(tmp_path: Path) -> None:
    perplexity, accuracy = comparison_tables(read_comparison(write_comparison(tmp_path)))
    assert perplexity.columns == ["uniform", "doge", "difference to uniform", "95% interval"]
    ((cells,),) = [[row.cells for row in perplexity.rows]]
    assert [cell.text for cell in cells] == ["3.2500", "3.0000", f"{MINUS}0.2500", f"{MINUS}0.3000 to {MINUS}0.2000"]
    assert [cell.strong for cell in cells] == [False, False, True, False]
    assert [row.header for row in accuracy.rows] == ["sciq", "wic"]
    assert not any(cell.strong for row in accuracy.rows for cell in row.cells)
    assert [cell.text for cell in accuracy.rows[1].cells] == ["0.5000", "1.0000", "+0.5000", "—"]


def test_accuracies_stand_side_by_side_where_there_are_any(tmp_path: Path) -> None:
    first, second = make_base(tmp_path / "one", MIXTURE), make_base(tmp_path / "two", MIXTURE)
    assert task_table(read_runs([first, second])) is None
    tasks = {"sciq": {"acc": 0.5, "acc_stderr": 0.02}, "odd": {"acc": None}}
    (second / "results.json").write_text(json.dumps({"version": 1, "tasks": tasks, "mean_accuracy": 0.5}))
    both = results_of({"a": 5.0}) | {"tasks": {"sciq": {"acc": 0.25, "acc_stderr": 0.01}}, "mean_accuracy": 0.25}
    (first / "results.json").write_text(json.dumps(both))
    table = task_table(read_runs([first, second]))
    assert table is not None
    found = {row.header: [cell.text for cell in row.cells] for row in table.rows}
    assert found == {"sciq": ["0.2500 ± 0.0100", "0.5000 ± 0.0200"], "odd": ["—", "—"], "mean": ["0.2500", "0.5000"]}


def test_both_are_on_the_page(tmp_path: Path) -> None:
    run = make_base(tmp_path / "one", MIXTURE)
    (run / "results.json").write_text(json.dumps({"version": 1, "tasks": {"sciq": {"acc": 0.4375}}}))
    written, comparison = datetime(2026, 1, 1, tzinfo=UTC), read_comparison(write_comparison(tmp_path))
    page = render_page(read_runs([run]), written, comparison)
    assert "Few-shot tasks" in page
    assert "0.4375" in page
    assert "Models compared" in page
    assert f"{MINUS}0.3000 to {MINUS}0.2000" in page
    assert "Models compared" not in render_page(read_runs([run]), written)


def test_a_damaged_comparison_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"comparison.json: rows: is damaged"):
        read_comparison(write_comparison(tmp_path, rows=[]))
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot be read"):
        read_comparison(tmp_path / "nowhere.json")
