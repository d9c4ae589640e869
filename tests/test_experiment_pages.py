"""The experiments: their configurations and pages, and that what the pages say is what docs/results/ holds."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doge_ds import experiment_pages
from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.experiment_pages import PAGES, RESULTS, experiments, pages, results_text, take_over
from doge_ds.experiments.comparison_config import ComparisonConfig, as_settings, load_comparison
from doge_ds.experiments.stages import identity_of
from doge_ds.reporting.cells import Cell, Row, Table
from tests.reporting.comparisons import summary_of

ROOT = Path(__file__).resolve().parents[1]
NAMES = experiments(ROOT)
STORES = json.loads((ROOT / RESULTS / "stores.json").read_text())


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


def identities(path: Path, config: ComparisonConfig, name: str, seed: int) -> dict[str, str]:
    """What `doge-ds compare` knows one mixture's stages by. Of those that DoGE learns and of uniform weights: others
    are known by a reference model too, or by the tokens in a store."""
    entry, found = config.mixtures[name], {}
    what: dict[str, Any] = {}
    if entry.proxy is not None:
        if entry.proxy.get("method") == "doremi":
            return {}
        settings = as_settings(config.proxy_settings, entry.proxy, {"training.seed": seed})
        proxy = load_config(ProxyConfig, path.parent / str(config.proxy), settings)
        found["proxy"] = identity_of("proxy", proxy, store=facts_of(proxy.data.path), upstream=[])
        what = {"mixture": {"parts": entry.stages}, "upstream": [found["proxy"]]}
    elif entry.mixture != "uniform":
        return {}
    if config.has_base(name):
        settings = as_settings(config.base_settings, entry.base, {"training.seed": seed})
        base = load_config(BaseConfig, path.parent / str(config.base), settings)
        domains = base.data.train_domains or STORES[base.data.path]["domains"]
        what = what or {"mixture": [[0, dict.fromkeys(domains, 1 / len(domains))]]}
        found["base"] = identity_of("base", base, store=facts_of(base.data.path), **what)
        store = config.evaluation.data or base.data.path
        measured = {"domains": config.evaluation.domains or STORES[store]["domains"]}
        facts = {"store": facts_of(store), "options": measured, "upstream": [found["base"]]}
        found["eval"] = identity_of("eval", None, **facts)
    return found


def facts_of(store: str) -> dict[str, str]:
    """As TokenStore.facts has them."""
    return {key: STORES[store][key] for key in ("store", "tokenizer_sha256")}


def test_pages_and_configurations_belong_together() -> None:
    assert len(NAMES) == 9
    assert {path.stem for path in (ROOT / PAGES).glob("*.md")} == {*NAMES, "README"}
    index = (ROOT / PAGES / "README.md").read_text()
    assert all(f"[{name}.md]({name}.md)" in index for name in NAMES)


def test_what_is_committed_is_what_the_results_say() -> None:
    for path, text in pages(ROOT).items():
        assert (ROOT / path).read_text() == text, f"python -m doge_ds.experiment_pages writes {path} anew"


# Numbers of the first paragraphs that follow from a summary's numbers and are not among them.
DERIVED = {
    "four_mixtures": {"0.01"},  # what three differences are below
    "unseen_text": {"0.189", "8.70", "0.150", "0.035"},  # a sixth of Russian's; ln 6000; averages without Russian
    # Of the trajectory; distances to the weights of 300 steps in four_mixtures.
    "weight_evolution": {"0.35", "0.256", "0.318", "0.028", "0.051"},
    "each_domain": {"0.052", "0.133", "0.029"},  # mean of seven differences, and Student's interval of it
    "catalan": {"0.09"},  # what four weights are below
    "proxy_size": {"0.028", "0.037", "0.149", "0.6", "1.6", "3.0"},  # 2/7 of two distances; 64 to 192; millions
    # Settings; distances between seeds, and to four_mixtures.
    "sensitivity": {"0.01", "0.1", "0.001", "0.906", "0.921", "0.071", "0.011", "0.047"},
    "staged_weights": {"0.297", "0.102", "0.492"},  # stages less uniform, of the same seed
}


def numbers_in(part: Any) -> Iterator[float]:
    """All estimates of a summary: means, ends of intervals, seeds; not the weights and cosines behind the charts."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key not in ("trajectory", "gram_cosines", "cost"):
                yield from numbers_in(value)
    elif isinstance(part, float):
        yield part


@pytest.mark.parametrize("name", [name for name in NAMES if (ROOT / RESULTS / name).exists()])
def test_the_numbers_of_the_first_paragraphs_are_the_results(name: str) -> None:
    text = (ROOT / PAGES / f"{name}.md").read_text().partition("## What the papers found")[0]
    known = list(numbers_in(json.loads((ROOT / RESULTS / name / "summary.json").read_text())))
    found = re.findall(r"\d+\.\d+", text)
    assert len(found) > 3
    for number in found:
        digits = len(number.partition(".")[2])
        is_known = any(f"{abs(value):.{digits}f}" == number for value in known)
        assert is_known or number in DERIVED.get(name, ()), f"{name}.md says {number}"


def summary_named(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / RESULTS / name / "summary.json").read_text())["mixtures"]
    return found


def test_what_was_trained_twice_is_as_far_apart_as_the_index_says() -> None:
    """To the last digit on several machines, and by the distances that are written down on another."""
    four, selected, options = map(summary_named, ("four_mixtures", "selected_tensors", "sensitivity"))
    for one, other in (("uniform", "uniform"), ("doge", "all tensors")):
        for key in ("weights", "log_perplexity"):
            for domain, again in selected[other][key].items():
                assert again["by_seed"].items() <= four[one][key][domain]["by_seed"].items()
    text = " ".join((ROOT / PAGES / "README.md").read_text().split())
    for one, other, words in (
        ("doge", "as in the other experiments", "ended {} to {} from the first"),
        ("doge, target mix", "target mix", "target `mix` {} to {})"),
    ):
        pairs = [(four[one]["weights"][name], options[other]["weights"][name]) for name in four[one]["weights"]]
        apart = sorted(
            sum(abs(first["by_seed"][seed] - again["by_seed"][seed]) for first, again in pairs) / 2 for seed in "012"
        )
        assert words.format(f"{apart[0]:.3f}", f"{apart[-1]:.3f}") in text


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
        expected = {
            (mixture, seed): identities(ROOT / f"ds_configs/experiments/{name}.json", config, mixture, seed)
            for mixture in config.mixtures
            for seed in config.seeds
        }
        assert any(expected.values())
        for (mixture, seed), stages in expected.items():
            for kind, identity in stages.items():
                assert summary["mixtures"][mixture]["stages"][str(seed)][kind].endswith(f"-{identity[:10]}"), (
                    f"{kind} of {mixture}, seed {seed}, was made with another configuration: run {name} again"
                )
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
    runs = [run_configurations(file, config) for config in (small, full)]
    if full.evaluation.data not in {None, *(run.data.path for run in runs[1])}:
        assert not full.groups, "nobody knows the domains of another store"
    steps = [max(run.training.steps for run in found) for found in runs]
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
