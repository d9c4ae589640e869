"""The job scripts without a cluster: they parse, and a mistake is one line and status 2 before any rank starts.

What they do on a cluster is in tests/slurm/.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOB_SCRIPTS = ("proxy", "base", "eval", "prepare", "verb")


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
        ("verb", [], "slurm/verb.sh: no verb is given; sbatch slurm/verb.sh VERB [options]; doge-ds --help names"),
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


@pytest.mark.parametrize("name", JOB_SCRIPTS)
def test_a_job_that_loses_its_node_or_is_preempted_starts_again_in_the_same_output_file(name: str) -> None:
    options = [line for line in (ROOT / f"slurm/{name}.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --requeue" in options
    assert "#SBATCH --open-mode=append" in options
    assert ("#SBATCH --signal=B:USR1@120" in options) == (name in ("proxy", "base"))  # those that save when asked to


def pipeline(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "slurm/pipeline.sh"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_pipeline_is_started_from_the_projects_folder_with_a_virtual_environment(
    project: Path, tmp_path: Path
) -> None:
    assert f"{tmp_path}: has no slurm/launch.sh; start slurm/pipeline.sh from" in only_error(pipeline(tmp_path))
    (project / ".venv/bin/python").unlink()
    assert f".venv: is no virtual environment in {project}; run make setup" in only_error(pipeline(project))
    assert pipeline(ROOT, "--help").stdout.startswith("usage: slurm/pipeline.sh ")
