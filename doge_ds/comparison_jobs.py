"""The stages of comparisons as Slurm jobs; `doge-ds compare` runs the same stages on one machine."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from doge_ds.errors import ConfigError
from doge_ds.experiments.chains import Planner
from doge_ds.experiments.runner import write_inputs
from doge_ds.experiments.stages import Stage as Run
from doge_ds.slurm_stages import Stage

SCRIPTS = {"reference": "slurm/base.sh", "proxy": "slurm/proxy.sh", "base": "slurm/base.sh", "eval": "slurm/eval.sh"}


@dataclass(frozen=True)
class JobsOfComparisons:
    """The jobs in order, and those runs among them that are not finished."""

    chain: list[Stage]
    unfinished: list[Run]


def plan_comparisons(
    files: Sequence[Path],
    settings: Sequence[str],
    folder: Path,
    ranks: int | None,
    sbatch: Mapping[str, Sequence[str]],
) -> JobsOfComparisons:
    """Check all input and lay out the jobs; changes nothing.

    Args:
        files: COMPARISON.json, one or several; stages that they share are one job.
        settings: as of `doge-ds compare --set`.
        folder: FOLDER.
        ranks: of a job; None where nobody said, which is refused where a reference model's batch depends on it.
        sbatch: options for proxies, bases (references too), evaluations, and under "report" for jobs of one task.

    Raises:
        DogeError: a comparison, or what it names, cannot be used.
    """
    planner = Planner(folder, ranks or 1)
    for file in files:
        planner.add(file, settings)
    runs = list(planner.stages.values())
    if ranks is None and any(run.kind == "reference" and not run.is_finished for run in runs):
        problem = "is missing: the reference models of DoReMi cut their batches by it"
        raise ConfigError("--ranks", problem, "give the number of ranks of proxies and bases")
    names = {run.identity: run.directory.name for run in runs}
    chain: list[Stage] = []
    for run in runs:
        before = [names[identity] for identity in run.after]
        if run.schedule and not run.is_finished:
            chain.append(_schedule(run, before, list(sbatch["report"])))
            before = [chain[-1].name]
        options = list(sbatch["base" if run.kind == "reference" else run.kind])
        result = run.result if run.is_finished else None
        chain.append(Stage(names[run.identity], _command(run), before, options, result=result))
    write = ["slurm/verb.sh", "compare", "--config", *map(str, files), "--output", str(folder), "--summarize"]
    write += ["--set", *settings] if settings else []
    chain.append(Stage("report", write, list(names.values()), list(sbatch["report"])))
    return JobsOfComparisons(chain, [run for run in runs if not run.is_finished])


def write_what_jobs_read(plan: JobsOfComparisons) -> None:
    """Run configurations beside the runs' directories, so that edits of a user's file do not reach jobs that wait."""
    for run in plan.unfinished:
        write_inputs(dataclasses.replace(run, schedule=None))


def _command(run: Run) -> list[str]:
    """Script and arguments: those of the program, whose `--config` the script gives it."""
    _, *words = run.words
    return [SCRIPTS[run.kind], *(words[1:] if words[0] == "--config" else words)]


def _schedule(run: Run, before: Sequence[str], options: list[str]) -> Stage:
    """The job that makes the schedule of a base from its proxy's trajectory."""
    wanted = run.schedule
    if wanted is None:
        raise ValueError(f"{run.name} has no schedule")
    parts = ["--stages", str(wanted.parts), "--steps", str(wanted.base_steps)]
    command = ["slurm/verb.sh", "mixture", "schedule", str(wanted.run), *parts, "-o", str(run.schedule_file)]
    result = run.schedule_file if run.schedule_file.exists() else None
    return Stage(f"schedule-{run.directory.name}", command, list(before), options, result=result)
