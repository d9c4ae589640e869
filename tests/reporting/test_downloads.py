"""CSV files in data: URIs: the numbers survive, and the budget is kept."""

import csv
import io
import urllib.parse
from pathlib import Path

from doge_ds.reporting import downloads
from doge_ds.reporting.downloads import Download
from doge_ds.reporting.run_files import read_runs
from tests.reporting.run_directories import diverged, edit_metrics, make_base, make_proxy, names, write


def rows(download: Download) -> list[list[str]]:
    kind, _, text = download.uri.partition(",")
    assert kind == "data:text/csv;charset=utf-8"
    return list(csv.reader(io.StringIO(urllib.parse.unquote(text))))


def test_every_number_of_every_run_is_there(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy", ["a", "b"], target=["t"])
    edit_metrics(proxy, 1, **{"loss/a": None, "loss/b": 1 / 3})
    base = make_base(tmp_path / "base", {"a": 0.25, "b": 0.75}, {"a": 4.0, "t": None})
    found = {file.file_name: file for file in downloads.downloads(read_runs([proxy, base]))}
    assert list(found) == [
        "proxy_metrics.csv",
        "proxy_cosines.csv",
        "base_metrics.csv",
        "mixtures.csv",
        "perplexities.csv",
    ]
    header, *lines = rows(found["proxy_metrics.csv"])
    assert len(lines) == 4
    second = dict(zip(header, lines[1], strict=True))
    assert (second["step"], second["loss/a"], second["loss/b"], second["seconds"]) == ("20", "", "0.333333", "40")
    assert "every logged step" in found["proxy_metrics.csv"].description
    cosines = rows(found["proxy_cosines.csv"])
    assert cosines[0] == ["", "a", "b", "t"]
    assert [row[0] for row in cosines[1:]] == ["a", "b", "t"]
    assert cosines[1][1] == "1.000"
    assert ["base", "b", "0.75"] in rows(found["mixtures.csv"])
    perplexities = rows(found["perplexities.csv"])
    assert perplexities[1][:2] == ["base", "a"]
    assert perplexities[2] == ["base", "t", "800.0", "", repr(800 / 3), "50"]


def test_what_is_no_number_is_an_empty_field(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy", ["a", "b"], target="all", logged=(40,))
    edit_metrics(proxy, 0, gram=[[1, 0], [0, 0]], **{"loss/a": None})
    base = make_base(tmp_path / "base", {"a": 0.5, "b": 0.5}, {"a": 4.0})
    write(base / "results.json", diverged(["a"]))
    metrics, cosines, *_, perplexities = downloads.downloads(read_runs([proxy, base]))
    assert dict(zip(*rows(metrics), strict=True))["loss/a"] == ""
    assert rows(cosines)[1:] == [["a", "1.000", ""], ["b", "", ""]]
    assert rows(perplexities)[1] == ["base", "a", "", "", "", "50"]


def test_a_budget_that_is_too_small_thins_and_says_so(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy", names(60), steps=1000, logged=range(5, 1001, 5))
    metrics, cosines, _ = downloads.downloads(read_runs([proxy]), budget=200_000)
    lines = rows(metrics)
    assert lines[1][0] == "5"
    assert lines[-1][0] == "1000"
    assert f"{len(lines) - 1} of 200 logged steps" in metrics.description
    assert len(metrics.uri) <= 60_000
    assert "all rows" in cosines.description
    _, cosines, _ = downloads.downloads(read_runs([proxy]), budget=60_000)
    assert "40 of 61 rows" in cosines.description
    assert len(rows(cosines)) == 41


def test_a_run_without_a_line_has_no_file(tmp_path: Path) -> None:
    assert downloads.downloads(read_runs([make_proxy(tmp_path / "p", logged=())])) == []
