"""slurm/pipeline.sh on a real Slurm, from text to report; where a stage fails, the rest is not started."""

import json
import random
from typing import Any

import pytest

from doge_ds.data.prepare import prepare
from doge_ds.data.preparing.tokenizer_training import train_sentencepiece
from doge_ds.data.reading.recipes import read_recipe
from doge_ds.data.tokens import TokenStore
from tests.distributed.small_runs import write_config
from tests.slurm.cluster import wait_until
from tests.slurm.conftest import Project

SBATCH = ("--sbatch_prepare", "--ntasks=1", "--sbatch_proxy", "--nodes=2 --ntasks-per-node=1", "--sbatch_base")
CHAIN = ("proxy_of_chain.json", "base_of_chain.json", "--output", "chain", "--recipe", "recipe.json")
OPTIONS = (*CHAIN, "--prepare_tasks", "2", *SBATCH, "--nodes=1 --ntasks=1")


@pytest.fixture(scope="module")
def text(project: Project) -> None:
    """Three domains of text with a tokenizer, a recipe, and short configurations."""
    draw, folder = random.Random(0), project.folder
    words = ["".join(draw.choices("abdegiklmnoprstuvxyz", k=2 + n % 7)) for n in range(300)]
    for name in ("a", "b", "c"):
        texts = [" ".join(draw.choices(words, k=50)) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_sentencepiece(" ".join(draw.choices(words, k=20_000)).split("q"), 400, folder / "tokenizer")
    files = [{"files": [f"{name}.jsonl"], "domain": name} for name in ("a", "b", "c")]
    (folder / "recipe.json").write_text(json.dumps({"sources": files, "tokenizer": str(folder / "tokenizer")}))
    short = {"steps": 12, "warmup_steps": 2, "checkpoint_every": 6}
    write_config(folder / CHAIN[0], folder / "tokens", "proxy", training=short, doge={"target": "mix"})
    write_config(folder / CHAIN[1], folder / "tokens", "base", training=short)


def submit(project: Project, *options: str) -> dict[str, int]:
    """Start slurm/pipeline.sh; the jobs' numbers by stage."""
    printed = project.cluster.run("slurm/pipeline.sh", *OPTIONS, *options, folder=project.folder)
    stages = json.loads((project.folder / "chain/pipeline.json").read_text())["stages"]
    jobs = {stage["stage"]: int(stage["job"]) for stage in stages if stage["job"]}
    assert printed.endswith(f"to cancel all of it: scancel {' '.join(map(str, jobs.values()))}\n")
    return jobs


def log(project: Project, stage: str) -> str:
    return "".join(path.read_text() for path in sorted((project.folder / "chain/logs").glob(f"doge-{stage}-*.out")))


def refused(project: Project, *options: str) -> str:
    done = project.cluster.call("slurm/pipeline.sh", *OPTIONS, *options, folder=project.folder)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def states(project: Project, jobs: dict[str, int]) -> dict[str, str]:
    return {stage: project.cluster.job(job)["JobState"] for stage, job in jobs.items()}


@pytest.mark.usefixtures("text")
def test_a_stage_that_sbatch_refuses_leaves_nothing_in_the_queue(project: Project) -> None:
    message = refused(project, "--sbatch_report", "--partition=moon")
    assert "stage report: sbatch refused it (" in message
    assert "invalid partition specified: moon" in message
    assert "the stages before it (prepare " in message
    wait_until(lambda: not project.cluster.run("squeue", "-h"), "the queue is empty", 30)


@pytest.mark.usefixtures("text")
def test_the_chain_stops_where_a_stage_fails_and_goes_on_when_it_is_mended(project: Project) -> None:
    cluster, folder = project.cluster, project.folder
    jobs = submit(project, "--set_proxy", "training.micro_batch_size=3")  # 2 ranks cannot share 4 sequences by threes
    assert list(jobs) == [
        "prepare",
        "merge",
        "proxy",
        *(f"{k}-{n}" for k in ("base", "eval") for n in ("uniform", "doge")),
        "report",
    ]
    message = refused(project)
    assert f"chain: jobs of the submission before are still there ({jobs['prepare']}, " in message
    assert cluster.wait_for(jobs["proxy"], "FAILED")["ExitCode"] == "2:0"
    assert "training.micro_batch_size" in log(project, "proxy")
    for stage in ("base-uniform", "base-doge", "eval-uniform", "eval-doge", "report"):
        cluster.wait_for(jobs[stage], "CANCELLED", seconds=30)
        assert cluster.job(jobs[stage])["Reason"] == "DependencyNeverSatisfied"
    assert states(project, jobs)["merge"] == "COMPLETED"
    assert "shard 0 of 2 is done" in log(project, "prepare")
    assert "shard 1 of 2 is done" in log(project, "prepare")
    recipe = read_recipe(folder / "recipe.json")
    alone = prepare(recipe, folder / "alone", tokenizer=folder / "tokenizer", workers=1)
    assert alone is not None
    assert TokenStore(folder / "tokens").fingerprint() == alone.fingerprint()

    jobs = submit(project)
    assert "prepare" not in jobs
    assert "merge" not in jobs
    cluster.wait_for(jobs["report"], "COMPLETED", seconds=300)
    assert set(states(project, jobs).values()) == {"COMPLETED"}
    learned = json.loads((folder / "chain/proxy/mixture.json").read_text())["domains"]
    trained_on = {name: facts(project, name)["mixture"] for name in ("uniform", "doge")}
    assert trained_on == {"uniform": pytest.approx(dict.fromkeys("abc", 1 / 3)), "doge": pytest.approx(learned)}
    for name in ("uniform", "doge"):
        results = json.loads((folder / f"chain/base_{name}/results.json").read_text())
        assert set(results["perplexity"]["domains"]) == {"a", "b", "c"}
    page = (folder / "chain/report.html").read_text()
    assert all(f"base_{name}" in page for name in ("uniform", "doge"))

    printed = cluster.run("slurm/pipeline.sh", *OPTIONS, "--dry_run", folder=folder)
    assert "# eval-doge: already there, chain/base_doge/results.json\n" in printed
    assert "# merge: already there, " in printed


def facts(project: Project, name: str) -> dict[str, Any]:
    """run.json of a base."""
    found: dict[str, Any] = json.loads((project.folder / f"chain/base_{name}/run.json").read_text())
    return found


@pytest.mark.usefixtures("text")
def test_a_comparison_runs_to_its_report(project: Project) -> None:
    cluster, folder = project.cluster, project.folder
    if not (folder / "tokens").exists():
        prepare(read_recipe(folder / "recipe.json"), folder / "tokens", tokenizer=folder / "tokenizer", workers=1)
    mixtures = {"uniform": "uniform", "staged": {"proxy": {}, "stages": 2}}
    settings = {"training.log_every": 3}
    comparison = {"proxy": CHAIN[0], "base": CHAIN[1], "proxy_settings": settings, "mixtures": mixtures}
    (folder / "two.json").write_text(json.dumps(comparison))
    options = ["--comparison", "two.json", "--output", "compared", "--sbatch", "--nodes=1 --ntasks=1"]
    cluster.run("slurm/pipeline.sh", *options, folder=folder)
    stages = json.loads((folder / "compared/pipeline.json").read_text())["stages"]
    assert [stage["stage"].split("-s0")[0] for stage in stages] == [
        *("base-uniform", "eval-uniform", "proxy-staged", "schedule-base-staged", "base-staged", "eval-staged"),
        "report",
    ]
    jobs = {stage["stage"]: int(stage["job"]) for stage in stages}
    cluster.wait_for(jobs["report"], "COMPLETED", seconds=300)
    assert set(states(project, jobs).values()) == {"COMPLETED"}
    summary = json.loads((folder / "compared/two/summary.json").read_text())
    assert summary["complete"] is True
    assert list(summary["mixtures"]["staged"]["differences"]["groups"]["all"]["by_seed"]) == ["0"]
    (staged,) = (folder / "compared/stages").glob("base-staged-*/run.json")
    assert [stage["from_step"] for stage in json.loads(staged.read_text())["schedule"]] == [0, 6]
    assert (folder / "compared/two/report.html").exists()
    printed = cluster.run("slurm/pipeline.sh", *options, "--dry_run", folder=folder)
    assert printed.count(": already there, ") == 5  # all but the schedule's job, which is not needed, and the report
