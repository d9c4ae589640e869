"""A comparison as Slurm jobs before anything is submitted; tests/slurm/ submits one."""

import json
import shlex
from pathlib import Path

import pytest

from doge_ds import pipeline
from doge_ds.comparison_jobs import plan_comparisons, write_what_jobs_read
from tests.distributed.small_runs import small_store, write_config

SBATCH = {"proxy": ["--gpus=2"], "base": ["--gpus=4"], "eval": ["--gpus=1"], "report": ["--mem=1G"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """comparison.json: uniform, DoGE, its four stages and DoReMi, on three domains."""
    folder = tmp_path_factory.mktemp("comparison_jobs")
    store = small_store(folder / "store")
    three = {"train_domains": ["a", "b", "c"]}
    write_config(folder / "proxy.json", store, "proxy", data=three, doge={"target": "all"})
    write_config(folder / "base.json", store, "base", data=three)
    mixtures = {
        "uniform": "uniform",
        "doge": {"proxy": {}},
        "staged": {"proxy": {}, "stages": 4},
        "doremi": {"proxy": {"method": "doremi"}, "reference_mixture": "natural"},
    }
    comparison = {"proxy": "proxy.json", "base": "base.json", "seeds": [3, 5], "mixtures": mixtures}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return folder


def test_each_job_waits_for_what_it_reads(folder: Path, tmp_path: Path) -> None:
    plan = plan_comparisons([folder / "comparison.json"], ["seeds=[3]"], tmp_path, 2, SBATCH)
    jobs = {stage.name: stage for stage in plan.chain}

    def named(start: str) -> str:
        (name,) = [name for name in jobs if name.startswith(start)]
        return name

    proxy, doremi, schedule = named("proxy-doge-s3"), named("proxy-doremi-s3"), named("schedule-base-staged-s3")
    assert jobs[named("base-uniform-s3")].after == jobs[proxy].after == []
    assert jobs[named("base-doge-s3")].after == jobs[schedule].after == [proxy]  # the staged one learns nothing anew
    assert jobs[named("base-staged-s3")].after == [schedule]
    assert jobs[doremi].after == [named("reference-doremi-s3")]
    assert jobs[named("base-doremi-s3")].after == [doremi]
    for name in ("uniform", "doge", "staged", "doremi"):
        assert jobs[named(f"eval-{name}-s3")].after == [named(f"base-{name}-s3")]
    assert set(jobs["report"].after) == set(jobs) - {"report", schedule}
    assert jobs[named("reference-doremi-s3")].options == jobs[named("base-doge-s3")].options == ["--gpus=4"]
    assert jobs[schedule].options == jobs["report"].options == ["--mem=1G"]
    assert jobs[proxy].command[0] == "slurm/proxy.sh"
    assert jobs[doremi].command[-4:-1] == ["--reference", f"{tmp_path}/stages/{named('reference-')}/hf", "--output"]
    assert jobs[schedule].command[:3] == ["slurm/verb.sh", "mixture", "schedule"]
    assert jobs["report"].command[-3:] == ["--summarize", "--set", "seeds=[3]"]
    assert list(tmp_path.iterdir()) == []
    write_what_jobs_read(plan)
    for name in (proxy, doremi, named("base-staged-s3"), named("reference-doremi-s3")):
        config = jobs[name].command[1]
        assert json.loads(Path(config).read_text())["training"]["steps"] == 40
    assert (tmp_path / "stages" / named("eval-doge-s3")).is_dir()


def test_what_is_finished_is_left_out_and_nobody_waits_for_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_comparisons([folder / "comparison.json"], [], tmp_path, 1, SBATCH)
    (run,) = [run for run in plan.unfinished if run.directory.name.startswith("proxy-doge-s5")]
    run.directory.mkdir(parents=True)
    run.result.write_text("{}")
    command = ["--comparison", str(folder / "comparison.json"), "--ranks", "1", "--output", str(tmp_path), "--dry_run"]
    assert pipeline.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"# {run.directory.name}: already there, {run.result}" in lines
    (base,) = [line for line in lines if "--job-name=doge-base-doge-s5" in line]
    assert "--dependency" not in base
    assert f"--mixture {run.result}" in shlex.join(shlex.split(base))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["proxy.json", "base.json"], "PROXY.json: does not go with --comparison, which says it itself; leave it out"),
        (["--recipe", "x.json"], "--recipe: does not go with --comparison"),
        ([], "--ranks: is missing: the reference models of DoReMi cut their batches by it; give the number of ranks"),
        (["--set", "seeds=[-1]"], "seeds: [-1] are no distinct numbers from 0 on"),
        (["--set", "mixtures.doge.proxy.doge.mu=-1"], "mixtures.doge: "),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--comparison", str(folder / "comparison.json")]
    assert pipeline.main([*options, *files] if options[:1] == ["proxy.json"] else [*files, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_neither_a_chain_nor_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["proxy.json"]) == 2
    assert "names no PROXY.json and BASE.json, nor --comparison" in capsys.readouterr().err
