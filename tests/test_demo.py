"""The demo's bookkeeping; its stages are the programs, which have tests of their own."""

import json
import os
from pathlib import Path

import pytest

from doge_ds import demo

LOGS = {"uniform": {"python": 5.0, "descriptions": 7.0}, "doge": {"python": 5.5, "descriptions": 6.5}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/demo as finished stages leave it."""
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy/mixture.json").write_text(json.dumps({"version": 1, "domains": {"python": 1.0}}))
    for name, logs in LOGS.items():
        domains = {domain: {"log_perplexity": log, "perplexity": 2.0**log} for domain, log in logs.items()}
        (tmp_path / f"base_{name}").mkdir()
        (tmp_path / f"base_{name}/results.json").write_text(json.dumps({"perplexity": {"domains": domains}}))
    return tmp_path


def test_summary_puts_both_bases_side_by_side_and_marks_the_target(folder: Path) -> None:
    summary = demo.summarize({"prepare text": 1.0})
    assert summary["domains"]["descriptions"] == {
        "weight": None,
        "is_target": True,
        "perplexity_uniform": 128.0,
        "perplexity_doge": pytest.approx(2**6.5),
        "difference": pytest.approx(2**6.5 - 128),
        "log_perplexity_difference": -0.5,
    }
    assert summary["domains"]["python"]["weight"] == 1.0
    lines = demo.table(summary).splitlines()
    assert lines[-1].split() == ["descriptions", "target", "128.00", "90.51", "-37.49"]
    assert lines[-2].split() == ["python", "1.000", "32.00", "45.25", "+13.25"]
    assert "illustration" in summary["note"]


def test_a_model_that_diverged_has_dashes_in_the_table(folder: Path) -> None:
    domains = {domain: {"log_perplexity": None, "perplexity": None} for domain in LOGS["doge"]}
    (folder / "base_doge/results.json").write_text(json.dumps({"perplexity": {"domains": domains}}))
    summary = demo.summarize({})
    assert summary["domains"]["python"]["difference"] is None
    assert summary["domains"]["python"]["log_perplexity_difference"] is None
    lines = demo.table(summary).splitlines()
    assert lines[-1].split() == ["descriptions", "target", "128.00", "-", "-"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_a_stage_runs_again_when_what_it_is_made_from_is_newer(folder: Path) -> None:
    result, source = folder / "base_doge/results.json", folder / "proxy/mixture.json"
    os.utime(source, (100, 100))
    os.utime(result, (200, 200))
    assert demo.is_newer(result, [source])
    os.utime(source, (300, 300))
    assert not demo.is_newer(result, [source])
    assert not demo.is_newer(folder / "nowhere", [])


def test_both_bases_differ_in_the_mixture_alone(folder: Path) -> None:
    stages = {name: command for name, _, _, command in demo.stages(folder / "store")}
    uniform, doge = stages["train on the uniform mixture"], stages["train on the doge mixture"]
    differing = [pair for pair in zip(uniform, doge, strict=True) if pair[0] != pair[1]]
    assert differing == [
        ("uniform", str(folder / "proxy/mixture.json")),
        (str(folder / "base_uniform"), str(folder / "base_doge")),
    ]


def test_the_report_is_of_the_proxy_and_both_bases_and_is_made_again_when_one_of_them_is(folder: Path) -> None:
    name, result, made_from, command = demo.stages(folder / "store")[-1]
    assert name == "write the report"
    assert command[1:] == [
        "report",
        *(str(folder / run) for run in ("proxy", "base_uniform", "base_doge")),
        "-o",
        str(folder / "report.html"),
    ]
    result.write_text("")
    os.utime(result, (200, 200))
    for path in made_from:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        os.utime(path, (100, 100))
    assert demo.is_newer(result, made_from)
    os.utime(folder / "base_doge/results.json", (300, 300))
    assert not demo.is_newer(result, made_from)
