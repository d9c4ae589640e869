"""Few-shot tasks by name, and whether their datasets are where a machine without internet can read them.

Tasks are lm-eval's stock definitions. With a root of datasets only one thing of a definition changes: `dataset_path`
becomes ROOT/<organisation>/<name>, a folder like a snapshot of the hub, as eval/prefetch.py makes it.
"""

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from doge_ds.errors import ConfigError, nearest

SUITES = {"doge6": ("copa", "sciq", "logiqa", "piqa", "wic", "winogrande")}
"""The six tasks of the paper (arXiv 2310.15393, section 4)."""

MARK = ".doge_ds_complete.json"
"""In a folder that eval/prefetch.py made, once all of the dataset is there."""

UNFINISHED = ".doge_ds_unfinished"
"""In such a folder until then: what is there without MARK may also be a user's own copy."""

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


class TaskDataset(NamedTuple):
    """Where a task's questions come from: a repository of the hub, and which of its configurations."""

    path: str
    configuration: str | None


def choose_tasks(names: Sequence[str], include_path: Path | None = None) -> list[str]:
    """Tasks in the order asked for, each once; suites, and lm-eval's groups and tags, are written out.

    Args:
        names: of suites (SUITES), tasks, groups or tags.
        include_path: a folder with task definitions of the user's own.

    Raises:
        ConfigError: no such task or folder; the nearest name is named.
    """
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include_path {include_path}", "is no folder", "name one with task definitions (YAML)")
    found: list[str] = []
    for name in names:
        for task in SUITES.get(name, (name,)):
            found += _written_out(task, task_manager(include_path))
    return list(dict.fromkeys(found))


@lru_cache(maxsize=4)
def task_manager(*include_paths: Path | None) -> Any:
    """lm-eval's index of tasks, with the user's own folders; those that come later win. It takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[str(path) for path in include_paths if path is not None])


def dataset_of(task: str, include_path: Path | None = None) -> TaskDataset | None:
    """The dataset that a task reads; None where its definition names none."""
    definition = _definition(task, task_manager(include_path))
    path = definition.get("dataset_path")
    return TaskDataset(path, definition.get("dataset_name")) if isinstance(path, str) else None


def check_datasets(tasks: Iterable[str], data_root: Path | None, include_path: Path | None = None) -> None:
    """Whether every task's dataset can be read without the network, where it must be.

    Args:
        tasks: their names.
        data_root: the root of datasets; None for the hub's cache, which is looked into only where the variables
            HF_HUB_OFFLINE or HF_DATASETS_OFFLINE say that there is no network.

    Raises:
        ConfigError: some are missing; all of them are named.
    """
    wanted = {task: dataset for task in tasks if (dataset := dataset_of(task, include_path))}
    if data_root is not None:
        missing = {task: data.path for task, data in wanted.items() if not _has_files(data_root / data.path)}
        where = f"--data_root {data_root}"
    elif wanted and any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in OFFLINE_VARIABLES):
        missing = {task: data.path for task, data in wanted.items() if not _is_cached(data.path)}
        where = "the cache of the Hugging Face hub"
    else:
        return
    if missing:
        names = ", ".join(
            f"{path} ({', '.join(t for t in missing if missing[t] == path)})" for path in _unique(missing)
        )
        remedy = f"on a machine with internet: python eval/prefetch.py --tasks {' '.join(missing)} --to DIR"
        raise ConfigError(where, f"lacks {names}", f"{remedy}; then --data_root DIR")


def definition_for(task: str, data_root: Path | None, include_path: Path | None = None) -> str | dict[str, Any]:
    """What lm-eval is asked to run: the task by name, or its stock definition with its dataset under `data_root`."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if data_root is None or (dataset := dataset_of(task, include_path)) is None:
        return task
    stock: dict[str, Any] = load_yaml(task_manager(include_path).task_index[task].yaml_path)
    return stock | {"dataset_path": str((data_root / dataset.path).absolute())}


def _written_out(name: str, manager: Any) -> list[str]:
    """A task itself, or the tasks of a group or tag."""
    if name not in manager.task_index:
        known = [*manager.all_tasks, *SUITES]
        raise ConfigError(f"--tasks {name}", "is no task of lm-eval", _nearest(name, known))
    if name in manager.all_subtasks:
        return [name]
    if name in manager.all_tags:
        return [task for task in manager.all_subtasks if name in manager.task_index[task].tags]
    members = _definition(name, manager).get("task", [])
    names = [member if isinstance(member, str) else member.get("task") for member in members]
    return [task for member in names if isinstance(member, str) for task in _written_out(member, manager)]


def _nearest(name: str, known: Sequence[str]) -> str:
    """A remedy: lm-eval has thousands of names, too many to print."""
    remedy = nearest(name, known)
    return remedy if remedy.startswith("did you mean") else "`lm_eval ls tasks` lists all names"


def _definition(task: str, manager: Any) -> dict[str, Any]:
    """A task's YAML with what it includes; functions stay names."""
    from lm_eval.tasks._yaml_loader import load_yaml  # the one reader that follows `include`

    path = manager.task_index[task].yaml_path
    if path is None:
        return {}
    found: dict[str, Any] = load_yaml(path, resolve_func=False)
    return found


def _has_files(folder: Path) -> bool:
    """Whether there is any data, and no download that was broken off."""
    if (folder / MARK).is_file():
        return True
    if (folder / UNFINISHED).is_file() or any(folder.glob(".cache/**/*.incomplete")):
        return False
    return any(
        file.suffix in (".parquet", ".jsonl", ".json", ".arrow", ".csv")
        and ".cache" not in file.relative_to(folder).parts
        for file in (folder.rglob("*") if folder.is_dir() else [])
    )


def _is_cached(repository: str) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, repo_type="dataset", local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return _has_files(Path(folder))  # a failed try leaves README.md alone


def _unique(values: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(values.values()))
