"""Datasets of tasks into a folder, on a machine with internet, for machines without."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doge_ds.errors import ConfigError, first_line
from doge_ds.evaluation.tasks import MARK, UNFINISHED, TaskDataset, dataset_of

# Where the hub keeps what it made of a dataset that is a program: CONFIGURATION/SPLIT/*.parquet.
CONVERTED = "refs/convert/parquet"


def prefetch(tasks: Sequence[str], root: Path, include_path: Path | None = None) -> dict[str, dict[str, int]]:
    """Bring each task's dataset to ROOT/<organisation>/<name>, and load it from there as proof.

    A dataset that is there whole is not asked for again; one that was broken off goes on.

    Args:
        tasks: names that `choose_tasks` has returned.
        root: made if it is not there.

    Returns:
        For each task the number of items of each split.

    Raises:
        ConfigError: the hub cannot be reached, has no such dataset, or the folder cannot be written or loaded.
    """
    wanted = {task: dataset for task in tasks if (dataset := dataset_of(task, include_path))}
    for path in dict.fromkeys(dataset.path for dataset in wanted.values()):
        folder = root / path
        if not (folder / MARK).is_file():
            print(f"{path}: downloading to {folder}", flush=True)
            _download(path, folder)
    found = {}
    for task, dataset in wanted.items():
        found[task] = _count(dataset, root / dataset.path)
        print(f"{task}: " + ", ".join(f"{count:,} {split}" for split, count in found[task].items()), flush=True)
    return found


def _download(path: str, folder: Path) -> None:
    """One repository; the mark is written when all of it is there."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
    except OSError as error:
        raise ConfigError(f"--to {folder}", f"cannot be written ({error.strerror})", "name another folder") from None
    try:
        revision = HfApi().dataset_info(path).sha
        files = HfApi().list_repo_files(path, repo_type="dataset", revision=revision)
        is_program = any(file == f"{path.split('/')[-1]}.py" for file in files)
        if is_program:  # `datasets` runs no programs of others any more
            revision = HfApi().dataset_info(path, revision=CONVERTED).sha
        snapshot_download(path, repo_type="dataset", revision=revision, local_dir=folder)
    except RevisionNotFoundError:
        problem = "is a program, which `datasets` no longer runs, and the hub has no converted copy"
        raise ConfigError(
            f"the dataset {path}", problem, "leave the task out, or point it to a copy by --include_path"
        ) from None
    except Exception as error:  # the hub's and its HTTP library's own, a dozen kinds, and OSError of the disk
        remedy = "run this on a machine with internet; called again, it goes on where it stopped"
        raise ConfigError(f"the dataset {path}", f"cannot be downloaded ({first_line(error)})", remedy) from None
    if is_program:
        (folder / "README.md").write_text(_readme(path, folder), encoding="utf-8")
    (folder / UNFINISHED).unlink(missing_ok=True)
    (folder / MARK).write_text(json.dumps({"repository": path, "revision": revision}) + "\n")


def _readme(path: str, folder: Path) -> str:
    """What tells `datasets` which files are which configuration and split. Raises ConfigError where it is a part."""
    import yaml

    configurations: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*/*/*.parquet")):
        configuration, split = file.parts[-3:-1]
        if split.startswith("partial-"):  # of datasets above some GB the hub converts the beginning only
            raise ConfigError(f"the dataset {path}", f"is converted in part only ({split})", "leave the task out")
        entry = {"split": split, "path": f"{configuration}/{split}/*.parquet"}
        if entry not in configurations.setdefault(configuration, []):
            configurations[configuration].append(entry)
    listed = [{"config_name": name, "data_files": files} for name, files in configurations.items()]
    return f"---\n{yaml.safe_dump({'configs': listed})}---\n"


def _count(dataset: TaskDataset, folder: Path) -> dict[str, int]:
    """Items of each split, read from the folder. Raises ConfigError where it cannot be read."""
    import datasets

    try:
        loaded = datasets.load_dataset(str(folder), dataset.configuration)
    except Exception as error:  # ValueError, FileNotFoundError, DatasetGenerationError, pyarrow's own
        remedy = f"remove {folder} and run this again"
        raise ConfigError(str(folder), f"cannot be read ({first_line(error)})", remedy) from None
    return {str(split): len(rows) for split, rows in loaded.items()}
