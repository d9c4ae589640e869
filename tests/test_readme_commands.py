"""The commands of README.md and docs/quick_start.md, run as they stand there, in order, and what they print.

Both share one chain of commands, and each is run once: two launches, of one rank and 30 steps, are all it takes.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doge_ds.training.launch import free_port
from tests.documents import ROOT, commands, read_document, words_of

QUICK_START, README = (read_document((ROOT / name).read_text()) for name in ("docs/quick_start.md", "README.md"))
NOT_RUN = {
    "make setup": "installs into .venv, where this test runs",
    "make demo": "takes minutes; the same programs with more text and steps",
    "make test": "runs this test",
    "make test-slurm": "takes minutes, and starts a cluster",
    "tensorboard --logdir runs": "serves until it is stopped",
    "sbatch --nodes=2 --gpus-per-node=4 --cpus-per-gpu=8 slurm/proxy.sh ds_configs/runs/proxy_82m.json": "needs GPUs",
}
ALL = list(
    dict.fromkeys(
        command
        for document in (QUICK_START, README)
        for language, script in document.blocks
        if language == "bash"
        for command in commands(script)
    )
)
MARK = "--- command"
# The launcher's port is always 29500, and on this machine other tests or runs may be using it.
OTHER_PORT = 'deepspeed() { command deepspeed --master_port "$FREE_PORT" "$@"; }'


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder without what earlier runs left in it."""
    folder = tmp_path_factory.mktemp("readme") / "clone"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "data", ".venv"):
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture(scope="module")
def printed(clone: Path) -> dict[str, str]:
    """What each command printed; fails where one fails."""
    chosen = [command for command in ALL if command not in NOT_RUN]
    lines = [f"printf '\\n{MARK} {number}\\n'\n{command}" for number, command in enumerate(chosen)]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "FREE_PORT": str(free_port())}
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join([OTHER_PORT, *lines])],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    outputs = re.split(rf"\n{MARK} \d+\n", done.stdout)[1:]
    assert done.returncode == 0, f"{chosen[len(outputs) - 1]}\n{outputs[-1]}"
    return dict(zip(chosen, outputs, strict=True))


def shape(line: str) -> str:
    """A line without its numbers and the width of its columns."""
    return re.sub(r"\d[\d.,]*", "#", " ".join(line.split()))


def test_every_command_is_run_or_says_why_not() -> None:
    assert set(NOT_RUN) <= set(ALL)
    assert len(ALL) - len(NOT_RUN) >= 8
    for document in (QUICK_START, README):  # a block of another kind would escape
        assert {language for language, _ in document.blocks} <= {"bash", "text", "json"}


@pytest.mark.parametrize("command", NOT_RUN)
def test_what_is_not_run_is_there(command: str) -> None:
    """Its options are held against the programs' parsers in test_documentation.py."""
    program, *arguments = words_of(command)
    if program == "make":
        assert subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=False).returncode == 0
    elif program == "sbatch":
        assert all((ROOT / word).is_file() for word in arguments if not word.startswith("-"))
    else:
        assert (Path(sys.prefix) / "bin" / program).is_file()


def test_the_commands_leave_what_the_documents_say(clone: Path, printed: dict[str, str]) -> None:
    assert all("Traceback" not in output for output in printed.values())
    assert set(json.loads((clone / "runs/proxy/mixture.json").read_text())["domains"]) == {"python", "cpp", "yaml"}
    assert (clone / "runs/base/hf/README.md").is_file()
    assert (clone / "runs/base/hf/results.json").is_file()
    page = (clone / "runs/report.html").read_text()
    for name in ("python", "cpp", "yaml", "descriptions"):
        assert name in page
    for run in ("proxy", "base"):  # tensorboard --logdir runs
        assert list((clone / "runs" / run / "tensorboard").glob("events.*"))


def test_what_the_quick_start_shows_is_what_is_printed(printed: dict[str, str]) -> None:
    lines = {shape(line) for output in printed.values() for line in re.split(r"[\r\n]", output)}
    shown = [line for language, text in QUICK_START.blocks if language == "text" for line in text.splitlines()]
    assert len(shown) > 15
    for line in shown:
        assert shape(line) in lines, line
