"""A schedule of mixtures from a proxy's trajectory: the mean weights of equal parts of its run."""

import itertools
import sys
from pathlib import Path

import numpy as np

from doge_ds.config import MixtureStage, ProxyConfig
from doge_ds.data.order import without_traces
from doge_ds.errors import ConfigError, RunError
from doge_ds.mixture_schedule import ScheduleFile
from doge_ds.reporting.run_files import RunRecord, read_runs


def schedule_of_run(run: Path, stages: int, base_steps: int | None = None) -> ScheduleFile:
    """The mean weights of `stages` parts of a proxy's run, each from the same part of a base run on.

    `mean_weight` after s steps is the mean over all updates until then, m_s = S_s / n_s. The mean between two logged
    steps is (n_t m_t - n_s m_s) / (n_t - n_s), exact but for rounding; so parts end at the logged steps that are
    nearest to equal parts.

    Args:
        run: run directory of a proxy, finished or not; parts are of the steps that it has logged.
        stages: how many.
        base_steps: of the base run, which the first steps of the stages are scaled to; None for the proxy's.

    Raises:
        RunError: no proxy's run, or too few logged steps for so many parts.
        ConfigError: fewer than one stage, or more stages than steps.
    """
    if stages < 1:
        raise ConfigError(f"--stages {stages}", "is no number of stages", "give at least 1")
    (record,) = read_runs([run])
    if not isinstance(record.config, ProxyConfig):
        raise RunError(str(run), "is a run of train_base.py, which learns no weights", "name a proxy's")
    steps, means, names = _logged_means(record)
    ends, counts, starts = _parts(str(run), record.config, steps, stages, base_steps)
    _tell_skipped(record, _updates(record.config, record.config.training.steps))
    sums = np.vstack([np.zeros(len(names)), counts[1:, None] * means[ends]])
    parts = np.diff(sums, axis=0).clip(min=0) / np.diff(counts)[:, None]
    parts /= parts.sum(axis=1, keepdims=True)
    total = int(steps[-1])
    source = {
        "method": record.config.method,
        "run": str(run),
        "step": total,
        "target": record.config.target,
        "proxy_steps": [0, *(int(steps[end]) for end in ends)],
        "config_sha256": record.config_sha256,
        "store": record.facts.store,
        "tokenizer_sha256": record.facts.tokenizer_sha256,
    }
    schedule = [
        MixtureStage(from_step=start, mixture=without_traces(dict(zip(names, part, strict=True))))
        for start, part in zip(starts, parts.tolist(), strict=True)
    ]
    return ScheduleFile(schedule=schedule, source=source)


def check_parts(config: ProxyConfig, stages: int, base_steps: int) -> None:
    """Raises RunError or ConfigError, before the proxy has run, where `schedule_of_run` will."""
    every, last = config.training.log_every, config.training.steps
    _parts("the proxy", config, np.array([*range(every, last, every), last]), stages, base_steps)


def _parts(
    run: str, config: ProxyConfig, steps: np.ndarray, stages: int, base_steps: int | None
) -> tuple[list[int], np.ndarray, list[int]]:
    """Parts of a run that has logged `steps`.

    Returns:
        ends: indices of the logged steps that end them; counts: updates until then, after a 0; starts: first steps of
        the base's stages.
    """
    ends = _ends(run, steps, stages)
    counts = np.array([0, *(_updates(config, int(steps[end])) for end in ends)])
    if (counts[1:] <= counts[:-1]).any():
        raise RunError(run, f"has a part of {stages} without any update of the weights", "ask for fewer stages")
    total = int(steps[-1])
    scaled = [round(int(steps[end]) * (base_steps or total) / total) for end in ends]
    starts = [0, *scaled[:-1]]
    if any(later <= earlier for earlier, later in itertools.pairwise([*starts, scaled[-1]])):
        raise ConfigError(f"a base of {base_steps} steps", f"has too few for {stages} stages", "ask for fewer stages")
    return ends, counts, starts


def _logged_means(record: RunRecord) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logged steps with all mean weights, [lines]; these weights, [lines, domains]; the domains."""
    metrics = record.metrics
    names = metrics.names("mean_weight/")
    if not names:
        raise RunError(str(record.path), "has logged no mean weights yet", "name a proxy's run that has")
    means = np.stack([metrics.columns[f"mean_weight/{name}"] for name in names], axis=1)
    whole = np.isfinite(means).all(axis=1)
    return metrics.steps[whole], means[whole], names


def _ends(run: str, steps: np.ndarray, stages: int) -> list[int]:
    """Indices of the logged steps that end the parts. Raises RunError where two parts would end at the same."""
    targets = steps[-1:] * np.arange(1, stages + 1) / stages if len(steps) else np.empty(0)
    ends = [int(np.abs(steps - target).argmin()) for target in targets]
    if len(set(ends)) < stages:
        problem = f"has {len(steps)} logged steps, too few for {stages} stages"
        raise RunError(run, problem, "ask for fewer stages, or log more often (training.log_every)")
    return ends


def _updates(config: ProxyConfig, steps: int) -> int:
    """Updates of the weights in the first `steps` steps, none of them skipped."""
    measured = config.doge.selection.steps if config.doge.selection else 0
    return max(0, steps - measured) // config.doge.update_every


def _tell_skipped(record: RunRecord, updates: int) -> None:
    """One line where updates were skipped: metrics.jsonl does not say which, so the parts are off by so many."""
    accepted = record.mixture.source.get("accepted_steps") if record.mixture else None
    skipped = 0 if accepted is None else updates - int(accepted)
    if skipped:
        print(f"warning: {record.path}: {skipped} updates were skipped, and count as if they were not", file=sys.stderr)
