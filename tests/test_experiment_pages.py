"""The experiments: their configurations and pages, and that what the pages say is what docs/results/ holds."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from doge_ds import experiment_pages
from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.experiment_pages import PAGES, RESULTS, experiments, pages, results_text, take_over
from doge_ds.experiments.comparison_config import ComparisonConfig, as_settings, load_comparison
from doge_ds.reporting.cells import Cell, Row, Table
from tests.reporting.comparisons import summary_of

ROOT = Path(__file__).resolve().parents[1]
NAMES = experiments(ROOT)


def run_configurations(path: Path, config: ComparisonConfig) -> list[ProxyConfig | BaseConfig]:
    """Of every mixture; raises ConfigError for one that cannot be read."""
    found: list[ProxyConfig | BaseConfig] = []
    for name, entry in config.mixtures.items():
        if entry.proxy is not None:
            assert config.proxy is not None
            layers = [config.proxy_settings, {"doge": {}} if entry.proxy.get("method") == "doremi" else {}, entry.proxy]
            found.append(load_config(ProxyConfig, path.parent / config.proxy, as_settings(*layers)))
        if config.has_base(name):
            assert config.base is not None
            settings = as_settings(config.base_settings, entry.base)
            found.append(load_config(BaseConfig, path.parent / config.base, settings))
    return found


def test_pages_and_configurations_belong_together() -> None:
    assert len(NAMES) == 9
    assert {path.stem for path in (ROOT / PAGES).glob("*.md")} == {*NAMES, "README"}
    index = (ROOT / PAGES / "README.md").read_text()
    assert all(f"[{name}.md]({name}.md)" in index for name in NAMES)


def test_what_is_committed_is_what_the_results_say() -> None:
    for path, text in pages(ROOT).items():
        assert (ROOT / path).read_text() == text, f"python -m doge_ds.experiment_pages writes {path} anew"


@pytest.mark.parametrize("name", NAMES)
def test_results_are_of_the_committed_configuration(name: str) -> None:
    file = ROOT / RESULTS / name / "summary.json"
    config = load_comparison(ROOT / f"ds_configs/experiments/{name}.json")
    assert run_configurations(ROOT / f"ds_configs/experiments/{name}.json", config)
    if file.exists():
        summary = json.loads(file.read_text())
        assert summary["seeds"] == config.seeds
        assert list(summary["mixtures"]) == list(config.mixtures)
        assert "/" not in summary["name"]
        assert all(
            not place.startswith("/")
            for mixture in summary["mixtures"].values()
            for places in mixture["stages"].values()
            for place in places.values()
            if place
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_at_full_size_can_be_read(name: str) -> None:
    text = (ROOT / PAGES / f"{name}.md").read_text()
    (command,) = re.findall(r"^    slurm/pipeline\.sh(?: .*\\\n)*.*$", text, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    file = ROOT / words[words.index("--comparison") + 1]
    assert file.stem == name
    settings = words[words.index("--set") + 1 : words.index("--sbatch")]
    small, full = load_comparison(file), load_comparison(file, settings)
    steps = [max(run.training.steps for run in run_configurations(file, config)) for config in (small, full)]
    assert steps[1] >= 8 * steps[0]


def test_a_finished_comparison_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = tmp_path / "root", tmp_path / "runs"
    for part in ("ds_configs/experiments", "docs/experiments"):
        shutil.copytree(ROOT / part, root / part)
    (folder / "catalan").mkdir(parents=True)
    (folder / "catalan/summary.json").write_text(json.dumps(summary_of("catalan")))
    take_over(folder, root)
    text = results_text(root, "catalan")
    assert "nats per token" in text
    assert re.findall(r"!\[[^\]]+\]\(\.\./results/catalan/catalan_\w+\.svg\)", text)
    assert results_text(root, "sensitivity") == "\nNot run yet.\n\n" or (ROOT / RESULTS / "sensitivity").exists()
    page = pages(root)[PAGES / "catalan.md"]
    assert text in page
    assert page.startswith((ROOT / PAGES / "catalan.md").read_text().partition("<!--")[0])
    monkeypatch.setattr(experiment_pages, "ROOT", root)
    assert experiment_pages.main([str(folder)]) == 0
    assert (root / PAGES / "catalan.md").read_text() == page


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment_pages.main([str(tmp_path)]) == 2
    assert "has no summary of an experiment; run doge-ds compare with this --output" in capsys.readouterr().err
    assert experiment_pages.main(["--help"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_table_as_markdown() -> None:
    rows = [Row("a|b", [Cell("1.0", strong=True)], note="x"), Row("all", [Cell("2")], is_summary=True)]
    table = Table("Two numbers", "what", ["value"], rows)
    assert experiment_pages.markdown(table) == (
        "Two numbers:\n\n| what | value |\n| --- | ---: |\n| a\\|b (x) | **1.0** |\n| **all** | 2 |"
    )
