"""Stages as Slurm jobs that wait for each other: shown, submitted in order, recorded; all or none."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from doge_ds.errors import ConfigError
from doge_ds.json_files import read_json_object, write_json


@dataclass(frozen=True)
class Stage:
    """One job, or one array of jobs.

    Attributes:
        name: what tells it from the other stages.
        command: the job script and its arguments.
        after: names of the stages that must have succeeded.
        options: sbatch's, as the user wants them for this stage.
        tasks: jobs of an array, or None for a job of its own.
        result: what is there already, so that nothing has to be submitted.
    """

    name: str
    command: list[str]
    after: list[str]
    options: list[str]
    tasks: int | None = None
    result: Path | None = None

    def sbatch(self, jobs: Mapping[str, str], logs: Path) -> list[str]:
        """The command that submits it; `jobs`: numbers of the stages before, those that are left out missing."""
        output = str(logs).replace("%", "%%") + ("/%x-%A_%a.out" if self.tasks else "/%x-%j.out")
        words = ["sbatch", "--parsable", f"--job-name=doge-{self.name}", f"--output={output}", *self.options]
        if self.tasks:
            words.append(f"--array=0-{self.tasks - 1}")
        if before := [jobs[name] for name in self.after if name in jobs]:
            words += [f"--dependency=afterok:{':'.join(before)}", "--kill-on-invalid-dep=yes"]
        return [*words, *self.command]


def print_commands(chain: Sequence[Stage], folder: Path) -> None:
    """What would be submitted, with the stages' names for job numbers."""
    names = {stage.name: stage.name.upper() for stage in chain if not stage.result}
    for stage in chain:
        print(f"# {stage.name}: already there, {stage.result}" if stage.result else _shown(stage, names, folder))


def _shown(stage: Stage, names: Mapping[str, str], folder: Path) -> str:
    return shlex.join(stage.sbatch(names, folder / "logs"))


def submit(chain: Sequence[Stage], folder: Path) -> dict[str, str]:
    """Submit one stage after the other, print each, and write FOLDER/pipeline.json; numbers of the jobs by stage.

    Raises:
        ConfigError: the folder cannot be made, there is no sbatch, or it refused a stage; those before are cancelled.
    """
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}", f"cannot be made ({error.strerror})", "name another folder") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {folder}", "cannot be written", "name another folder, or ask for the right to")
    jobs: dict[str, str] = {}
    record: list[dict[str, Any]] = []
    width = max(len(stage.name) for stage in chain)
    for stage in chain:
        command = None if stage.result else stage.sbatch(jobs, folder / "logs")
        if command:
            done = _run(command)
            if done.returncode != 0:
                raise ConfigError(f"stage {stage.name}", _refusal(done), _cancel(jobs))
            jobs[stage.name] = done.stdout.strip().split(";")[0]  # NUMBER or NUMBER;CLUSTER
        print(f"{stage.name:<{width}}  {_said(stage, jobs)}", flush=True)
        record.append({"stage": stage.name, "job": jobs.get(stage.name), "sbatch": command, "runs": stage.command})
        # After each: this process may be interrupted too, and the jobs are there.
        submitted = datetime.now(UTC).isoformat("T", "seconds")
        write_json(folder / "pipeline.json", {"submitted": submitted, "stages": record})
    print(f"to cancel all of it: scancel {' '.join(jobs.values())}")
    return jobs


def _said(stage: Stage, jobs: Mapping[str, str]) -> str:
    if stage.result:
        return f"already there, {stage.result}"
    before = ", ".join(jobs[name] for name in stage.after if name in jobs)
    tasks = f" of {stage.tasks} tasks" if stage.tasks else ""
    return f"job {jobs[stage.name]}{tasks}{', after ' if before else ''}{before}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(command[0], "is not there", "submit where Slurm's programs are, on a login node") from None


def _refusal(done: subprocess.CompletedProcess[str]) -> str:
    lines = [re.sub(r"^sbatch: (error|fatal): ", "", line) for line in done.stderr.strip().splitlines()]
    return f"sbatch refused it ({'; '.join(lines[-2:]) or f'status {done.returncode}'})"


def _cancel(jobs: Mapping[str, str]) -> str:
    """Cancel the jobs; what to tell the user."""
    if not jobs:
        return "nothing was submitted; mend it and submit again"
    numbers = [*jobs.values()]
    if _run(["scancel", *numbers]).returncode != 0:
        return f"the stages before it wait in the queue: scancel {' '.join(numbers)}"
    return f"the stages before it ({', '.join(f'{name} {job}' for name, job in jobs.items())}) were cancelled"


def submitted_before(folder: Path) -> list[dict[str, Any]]:
    """The stages of the submission before, if there was one."""
    if not (folder / "pipeline.json").exists():
        return []
    found = read_json_object(folder / "pipeline.json").get("stages")
    if isinstance(found, list) and all(isinstance(stage, dict) for stage in found):
        return found
    raise ConfigError(str(folder / "pipeline.json"), "is none of ours", "name another --output, or remove it")


def refuse_while_queued(folder: Path) -> None:
    """Two jobs must not write the same run. Raises ConfigError while jobs of the submission before are there."""
    before = {str(stage.get("job")) for stage in submitted_before(folder)}
    if not before:
        return
    done = _run(["squeue", "--noheader", "--me", "--format=%F"])  # of an array's jobs the array's number
    if done.returncode != 0:
        raise ConfigError("squeue", f"fails ({done.stderr.strip()})", "try again when Slurm answers")
    if there := sorted(before & set(done.stdout.split()), key=int):
        remedy = f"wait for them, or: scancel {' '.join(there)}"
        raise ConfigError(str(folder), f"jobs of the submission before are still there ({', '.join(there)})", remedy)
