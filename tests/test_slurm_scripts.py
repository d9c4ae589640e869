"""The job scripts without a cluster: they parse, and a mistake is one line and status 2 before any rank starts."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from doge_ds.data.prepare import prepare
from doge_ds.data.preparing.tokenizer_training import train_sentencepiece
from doge_ds.data.reading.recipes import read_recipe
from doge_ds.data.tokens import TokenStore

ROOT = Path(__file__).resolve().parents[1]
JOB_SCRIPTS = ("proxy", "base", "eval", "prepare")


def run_copy(
    tmp_path: Path, name: str, *arguments: str, submit_dir: Path | None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm does: a copy of it, in another folder, SLURM_SUBMIT_DIR set (None: not under Slurm)."""
    copy = tmp_path / "spool" / "slurm_script"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "slurm" / f"{name}.sh", copy)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))}
    if submit_dir is not None:
        environment |= {"SLURM_SUBMIT_DIR": str(submit_dir), "SLURM_JOB_ID": "1", **variables}
    command = ["bash", str(copy), *arguments]
    return subprocess.run(command, cwd=copy.parent, env=environment, capture_output=True, text=True, check=False)


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder to submit from: the scripts, a configuration, and a program in the virtual environment's place."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / "x.json").write_text("{}")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(shutil.which("true") or "/bin/true")
    return folder


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_bash_and_shellcheck_accept_the_script(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: only bash -n ran")
    subprocess.run(["shellcheck", "--external-sources", str(script)], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", JOB_SCRIPTS)
def test_without_sbatch_the_usage_is_told(name: str, tmp_path: Path) -> None:
    message = only_error(run_copy(tmp_path, name, "x.json", submit_dir=None))
    assert f"slurm/{name}.sh: is a job script; sbatch [...] slurm/{name}.sh" in message


@pytest.mark.parametrize("name", JOB_SCRIPTS)
def test_submitted_from_another_folder(name: str, tmp_path: Path) -> None:
    message = only_error(run_copy(tmp_path, name, "x.json", submit_dir=tmp_path))
    assert f"{tmp_path}: has no slurm/launch.sh; submit from the project's folder" in message


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("proxy", [], "slurm/proxy.sh: no run configuration is given; sbatch slurm/proxy.sh CONFIG.json [options]"),
        ("base", ["--mixture", "uniform"], "slurm/base.sh: no run configuration is given"),
        ("proxy", ["y.json"], "y.json: is no file in {project}; give the path"),
        ("eval", [], "slurm/eval.sh: no options are given; sbatch slurm/eval.sh --model MODEL --data STORE"),
        ("prepare", [], "slurm/prepare.sh: no input is given; sbatch slurm/prepare.sh RECIPE.json --output STORE"),
    ],
)
def test_arguments(name: str, arguments: list[str], message: str, project: Path, tmp_path: Path) -> None:
    found = only_error(run_copy(tmp_path, name, *arguments, submit_dir=project))
    assert message.format(project=project) in found


def test_without_a_virtual_environment(project: Path, tmp_path: Path) -> None:
    (project / ".venv/bin/python").unlink()
    message = only_error(run_copy(tmp_path, "proxy", "x.json", submit_dir=project))
    assert f".venv: is no virtual environment in {project}; run make setup, or name another" in message


@pytest.mark.parametrize("numbers", [("3", "7", "5"), ("0", "8", "5"), ("0", "17", "2")])
def test_an_array_must_hold_all_shards(numbers: tuple[str, str, str], project: Path, tmp_path: Path) -> None:
    names = ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    array = dict(zip(names, numbers, strict=True)) | {"SLURM_ARRAY_TASK_ID": numbers[0]}
    found = only_error(run_copy(tmp_path, "prepare", "r.json", submit_dir=project, **array))
    assert "--array: does not start at 0, or leaves numbers out; use --array=0-N" in found


SLURM_ANSWERS = (
    shutil.which("sbatch") is not None
    and subprocess.run("timeout 5 sinfo -h -t idle -o %n 2>/dev/null | grep -q .", shell=True, check=False).returncode
    == 0
)


def sbatch(project: Path, *arguments: str) -> tuple[int, str]:
    """A real job, waited for: its status, and all that the jobs of this folder wrote."""
    (project / ".venv/bin/python").unlink(missing_ok=True)
    (project / "slurm/site.sh").write_text(f"VIRTUAL_ENVIRONMENT={ROOT}/.venv\nSRUN_OPTIONS=()\n")
    if not (project / "doge_ds").exists():
        (project / "doge_ds").symlink_to(ROOT / "doge_ds")
    done = subprocess.run(
        ["sbatch", "--wait", *arguments],
        cwd=project,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stderr + "".join(path.read_text() for path in sorted(project.glob("slurm-*.out")))


@pytest.mark.skipif(not SLURM_ANSWERS, reason="no Slurm with an idle node answers")
def test_an_array_of_shards_and_a_job_that_merges(project: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abdegiklmnoprstuvxyz", k=2 + n % 7)) for n in range(300)]
    for name in ("a", "b", "c"):
        texts = [" ".join(draw.choices(words, k=50)) for _ in range(60)]
        (project / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_sentencepiece(" ".join(draw.choices(words, k=20_000)).split("q"), 400, project / "tokenizer")
    files = [{"files": [f"{name}.jsonl"], "domain": name} for name in ("a", "b", "c")]
    (project / "recipe.json").write_text(json.dumps({"sources": files, "tokenizer": str(project / "tokenizer")}))
    command = ("slurm/prepare.sh", "recipe.json", "--output", "store", "--workers", "1")
    status, log = sbatch(project, "--array=0-1", *command)
    assert status == 0, log
    assert "shard 0 of 2 is done" in log
    assert "shard 1 of 2 is done" in log
    assert not (project / "store").exists()
    status, log = sbatch(project, *command)
    assert status == 0, log
    expected = prepare(
        read_recipe(project / "recipe.json"), project / "alone", tokenizer=project / "tokenizer", workers=1
    )
    assert expected is not None
    assert TokenStore(project / "store").fingerprint() == expected.fingerprint()


@pytest.mark.skipif(not SLURM_ANSWERS, reason="no Slurm with an idle node answers")
def test_the_jobs_status_is_the_programs(project: Path) -> None:
    """A real job whose configuration is wrong: status 2, and the program's one line in the output file."""
    status, log = sbatch(project, "--ntasks=2", "slurm/proxy.sh", "x.json")
    assert status == 2, log
    assert len([line for line in log.splitlines() if line.startswith("error: x.json: ")]) == 1, log
