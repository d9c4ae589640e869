"""The job scripts without a cluster: they parse, and a mistake is one line and status 2 before any rank starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOB_SCRIPTS = ("proxy", "base", "eval")


def run_copy(tmp_path: Path, name: str, *arguments: str, submit_dir: Path | None) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm does: a copy of it, in another folder, SLURM_SUBMIT_DIR set (None: not under Slurm)."""
    copy = tmp_path / "spool" / "slurm_script"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "slurm" / f"{name}.sh", copy)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))}
    if submit_dir is not None:
        environment |= {"SLURM_SUBMIT_DIR": str(submit_dir), "SLURM_JOB_ID": "1"}
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
    ],
)
def test_arguments(name: str, arguments: list[str], message: str, project: Path, tmp_path: Path) -> None:
    found = only_error(run_copy(tmp_path, name, *arguments, submit_dir=project))
    assert message.format(project=project) in found


def test_without_a_virtual_environment(project: Path, tmp_path: Path) -> None:
    (project / ".venv/bin/python").unlink()
    message = only_error(run_copy(tmp_path, "proxy", "x.json", submit_dir=project))
    assert f".venv: is no virtual environment in {project}; run make setup, or name another" in message


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed")
@pytest.mark.skipif(
    subprocess.run("timeout 5 sinfo -h -t idle -o %n 2>/dev/null | grep -q .", shell=True, check=False).returncode != 0,
    reason="no Slurm with an idle node answers",
)
def test_the_jobs_status_is_the_programs(project: Path) -> None:
    """A real job whose configuration is wrong: status 2, and the program's one line in the output file."""
    (project / ".venv/bin/python").unlink()
    (project / "slurm/site.sh").write_text(f"VIRTUAL_ENVIRONMENT={ROOT}/.venv\nSRUN_OPTIONS=()\n")
    (project / "doge_ds").symlink_to(ROOT / "doge_ds")
    done = subprocess.run(
        ["sbatch", "--wait", "--ntasks=2", "slurm/proxy.sh", "x.json"],
        cwd=project,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    log = "".join(path.read_text() for path in project.glob("slurm-*-doge-proxy.out"))
    assert done.returncode == 2, done.stderr + log
    assert len([line for line in log.splitlines() if line.startswith("error: x.json: ")]) == 1, log
