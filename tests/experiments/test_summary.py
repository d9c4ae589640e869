"""summary.json from what stages left: seeds that are missing, models that diverged, schedules, shared costs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from doge_ds.errors import RunError
from doge_ds.experiments.chains import Chain, Comparison
from doge_ds.experiments.comparison_config import ComparisonConfig, MixtureEntry
from doge_ds.experiments.stages import Kind, Stage
from doge_ds.experiments.summary import summarize
from doge_ds.reporting.summaries import read_summary
from tests.reporting.run_directories import diverged, edit_metrics, make_base, make_proxy, results_of, write

DOMAINS = ["python", "prose", "yaml"]
UNIFORM = dict.fromkeys(DOMAINS, 1 / 3)


class Runs:
    """A folder of finished stages of two mixtures: uniform, and doge, learned."""

    def __init__(self, folder: Path, **entry: Any) -> None:
        self.folder = folder
        self.chains: dict[str, dict[int, Chain]] = {"uniform": {}, "doge": {}}
        self._entry = {"proxy": {}, **entry}

    def stage(self, mixture: str, kind: Kind, seed: int, flops: float | None = None) -> Path:
        directory = self.folder / "stages" / f"{kind}-{mixture}-s{seed}"
        stage = Stage(kind, mixture, seed, str(directory), directory, (), config={"method": "doge"}, flops=flops)
        self.chains[mixture].setdefault(seed, {})[kind] = stage
        return directory

    def base(
        self, mixture: str, seed: int, perplexities: dict[str, float | None], weights: dict[str, float] = UNIFORM
    ) -> Path:
        run = make_base(self.stage(mixture, "base", seed, flops=2e6), weights)
        (run / "hf/config.json").touch()
        results = self.stage(mixture, "eval", seed)
        results.mkdir()
        write(results / "results.json", results_of(perplexities))
        return results / "results.json"

    def proxy(self, seed: int, **changes: Any) -> Path:
        return make_proxy(self.stage("doge", "proxy", seed, flops=1e6), **changes)

    def summary(self, **changes: Any) -> dict[str, Any]:
        mixtures = {"uniform": MixtureEntry(mixture="uniform"), "doge": MixtureEntry(**self._entry)}
        seeds = sorted({seed for chains in self.chains.values() for seed in chains})
        config = ComparisonConfig(proxy="p.json", base="b.json", seeds=seeds, mixtures=mixtures, **changes)
        given = {"uniform": UNIFORM}
        comparison = Comparison("c", Path("c.json"), config, self.chains, DOMAINS, given)
        found = summarize(comparison, self.folder, "cpu")
        write(self.folder / "summary.json", json.loads(json.dumps(found)))
        assert read_summary(self.folder / "summary.json").complete == found["complete"]
        return found


def test_a_seed_that_is_not_finished_is_left_out(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for seed in (0, 1):
        runs.base("uniform", seed, dict.fromkeys(DOMAINS, 10.0 + seed))
    runs.proxy(0)
    runs.base("doge", 0, {"python": 9.0, "prose": 11.0, "yaml": 10.0})
    assert runs.summary()["complete"]
    runs.proxy(1, logged=(10, 20))
    runs.stage("doge", "base", 1)
    runs.stage("doge", "eval", 1)
    summary = runs.summary()
    assert not summary["complete"]
    doge, uniform = summary["mixtures"]["doge"], summary["mixtures"]["uniform"]
    assert uniform["log_perplexity"]["yaml"]["by_seed"].keys() == {"0", "1"}
    assert doge["log_perplexity"]["yaml"]["by_seed"].keys() == {"0"}
    assert doge["weights"]["yaml"]["by_seed"].keys() == {"0"}
    difference = doge["differences"]["domains"]["yaml"]
    assert difference == {"by_seed": {"0": pytest.approx(0)}, "mean": pytest.approx(0), "low": None, "high": None}
    assert (doge["worst_domain"]["name"], doge["worst_domain"]["difference_name"]) == ("prose", "prose")
    assert doge["stages"]["1"]["proxy"] == "stages/proxy-doge-s1"


def test_a_mixture_counts_in_its_own_groups_and_by_default_in_all(tmp_path: Path) -> None:
    runs = Runs(tmp_path, groups=["text"])
    runs.base("uniform", 0, dict.fromkeys(DOMAINS, 10.0))
    runs.proxy(0)
    runs.base("doge", 0, {"python": 9.0, "prose": 11.0, "yaml": 10.0})
    summary = runs.summary(groups={"code": ["python", "yaml"], "text": ["prose"]})
    doge, uniform = summary["mixtures"]["doge"], summary["mixtures"]["uniform"]
    assert uniform["average_log_perplexity"].keys() == {"code", "text"}
    assert doge["average_log_perplexity"].keys() == doge["differences"]["groups"].keys() == {"text"}
    assert doge["differences"]["groups"]["text"]["mean"] == pytest.approx(math.log(11 / 10))
    assert doge["log_perplexity"].keys() == doge["differences"]["domains"].keys() == set(DOMAINS)


def test_a_diverged_model_has_no_mean(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.base("uniform", 0, dict.fromkeys(DOMAINS, 10.0))
    runs.proxy(0)
    write(runs.base("doge", 0, dict.fromkeys(DOMAINS, 10.0)), diverged(DOMAINS))
    doge = runs.summary()["mixtures"]["doge"]
    nothing = {"by_seed": {"0": None}, "mean": None, "low": None, "high": None}
    assert doge["log_perplexity"]["yaml"] == doge["average_log_perplexity"]["all"] == nothing
    assert doge["differences"]["groups"]["all"] == nothing
    assert doge["worst_domain"] is None


def test_costs_are_means_over_seeds_and_add_up(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for seed in (0, 1):
        runs.base("uniform", seed, dict.fromkeys(DOMAINS, 10.0))
        edit_metrics(runs.proxy(seed), 3, seconds=10.0 + 4 * seed, tokens=700)
        runs.base("doge", seed, dict.fromkeys(DOMAINS, 10.0))
        edit_metrics(tmp_path / f"stages/base-doge-s{seed}", 1, seconds=100.0, tokens=3000)
    cost = runs.summary()["mixtures"]["doge"]["cost"]
    assert cost["proxy"] == {"flops": 1e6, "seconds": 12.0, "tokens": 700}
    assert cost["base"] == {"flops": 2e6, "seconds": 100.0, "tokens": 3000}
    assert cost["total"] == {"flops": 3e6, "seconds": 112.0, "tokens": 3700}
    assert cost["reference"] is None
    runs.stage("doge", "base", 0, flops=None)
    assert runs.summary()["mixtures"]["doge"]["cost"]["total"] == {"flops": None, "seconds": 112.0, "tokens": 3700}


def test_the_weights_of_a_schedule_are_its_mean_over_the_bases_steps(tmp_path: Path) -> None:
    runs = Runs(tmp_path, stages=2)
    runs.base("uniform", 0, dict.fromkeys(DOMAINS, 10.0))
    runs.proxy(0)
    mean = {"python": 0.5, "prose": 0.25, "yaml": 0.25}
    runs.base("doge", 0, dict.fromkeys(DOMAINS, 10.0), mean)
    doge = runs.summary()["mixtures"]["doge"]
    assert {name: of["mean"] for name, of in doge["weights"].items()} == mean
    assert doge["distance_from_uniform"]["mean"] == pytest.approx(1 / 6)
    assert doge["distance_from_against"] == doge["distance_from_uniform"]
    assert runs.summary()["mixtures"]["uniform"]["distance_from_against"] is None


def test_how_the_proxy_came_to_its_weights(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    steps = range(1, 401)
    run = runs.proxy(0, steps=400, logged=steps)
    edit_metrics(run, 7, warnings=["weights collapsed"])
    doge = runs.summary()["mixtures"]["doge"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trajectory = doge["trajectory"]
    assert len(trajectory["steps"]) == 120
    assert (trajectory["steps"][0], trajectory["steps"][-1]) == (1, 400)
    for place in (0, 50, -1):
        line = lines[trajectory["steps"][place] - 1]
        assert trajectory["weight"]["prose"][place] == line["weight/prose"]
        assert trajectory["mean_weight"]["yaml"][place] == line["mean_weight/yaml"]
    assert doge["last_weights"]["prose"]["mean"] == lines[-1]["weight/prose"]
    moved = sum(abs(lines[199][f"mean_weight/{name}"] - lines[399][f"mean_weight/{name}"]) for name in DOMAINS) / 2
    assert doge["stability"]["half_to_end"]["mean"] == pytest.approx(moved)
    assert doge["stability"]["across_seeds"] is None
    assert doge["warnings"] == ["seed 0, step 8: weights collapsed"]
    assert doge["gram_cosines"]["columns"] == [*DOMAINS, "<mix>"]
    assert doge["gram_cosines"]["values"][0][0] == pytest.approx(1)
    assert doge["log_perplexity"] is doge["differences"] is doge["worst_domain"] is None


def test_accuracies(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    file = runs.base("uniform", 0, dict.fromkeys(DOMAINS, 10.0))
    tasks = {"sciq": {"acc": 0.75, "acc_stderr": 0.1}, "piqa": {"acc": 0.25}}
    write(file, json.loads(file.read_text()) | {"tasks": tasks, "few_shot": {"num_fewshot": 5}, "mean_accuracy": 0.5})
    accuracy = runs.summary()["mixtures"]["uniform"]["accuracy"]
    assert {name: of["mean"] for name, of in accuracy.items()} == {"sciq": 0.75, "piqa": 0.25, "mean": 0.5}


def test_a_damaged_file_of_a_stage_is_named(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    file = runs.base("uniform", 0, dict.fromkeys(DOMAINS, 10.0))
    file.write_text('{"version": 1}')
    with pytest.raises(RunError, match=r"eval-uniform-s0/results\.json: is damaged"):
        runs.summary()
