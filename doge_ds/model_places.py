"""The models that `eval/run.py --model` names: folders, hub names, runs, checkpoints, and patterns of any of these."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from doge_ds.errors import ConfigError, ModelError
from doge_ds.export import export_run, run_and_step


@dataclass(frozen=True)
class ModelPlace:
    """One model.

    Attributes:
        name: as the user gave it, a pattern written out.
        label: what tells it from the other models, short; can be a file's name.
        folder: a Hugging Face folder or a name on the hub; None for a checkpoint that is not exported yet.
        results: where its results.json stands if nothing else is said.
    """

    name: str
    label: str
    folder: str | None
    results: Path


def find_models(names: Sequence[str]) -> list[ModelPlace]:
    """The models in the order given, those of a pattern in the order of their names.

    Args:
        names: a Hugging Face folder, a name on the hub, a run directory (its hf/ is meant), a checkpoint of a run
            (RUN/checkpoints/step00001000), or a pattern with * of such paths.

    Raises:
        ModelError: a pattern without any match, or a run that has not exported its model yet.
        ConfigError: a model that is named twice.
    """
    paths = [path for name in names for path in _written_out(name)]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ConfigError(f"--model {path}", "is named twice", "name each model once")
    return [_place(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def exported(place: ModelPlace, exports: Path) -> ModelPlace:
    """The place with a folder: a checkpoint is written there as a model in fp32, if that has not been done."""
    if place.folder is not None:
        return place
    folder = exports / place.label
    if not folder.is_dir():
        exports.mkdir(parents=True, exist_ok=True)
        run, step = run_and_step(Path(place.name), None)
        export_run(run, folder, "float32", step)
    return replace(place, folder=str(folder))


def _place(path: str, label: str) -> ModelPlace:
    folder = Path(path)
    run, step = run_and_step(folder, None)
    if step is not None:
        return ModelPlace(path, label, None, run / f"results_{folder.name}.json")
    if os.path.isfile(folder / "run.json"):  # Path.is_file raises OSError for a long name
        if not (folder / "hf").is_dir():
            remedy = f"wait for its end, or name one of its checkpoints, {folder / 'checkpoints'}/step..."
            raise ModelError(f"--model {path}", "is a run that has exported no model yet", remedy)
        return ModelPlace(path, label, str(folder / "hf"), folder / "results.json")
    return ModelPlace(path, label, path, (folder if os.path.isdir(folder) else Path()) / "results.json")


def _written_out(name: str) -> list[str]:
    if not glob.has_magic(name) or os.path.exists(name):
        return [name.rstrip("/") or name]
    found = sorted(path for path in glob.glob(name) if Path(path).is_dir())
    if not found:
        raise ModelError(f"--model {name}", "matches no folder", "check the pattern")
    return found


def _labels(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the hf and checkpoints that all runs have."""
    parts = [[part for part in Path(path).parts if part not in ("hf", "checkpoints", "/", "..", ".")] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(of_path[-length:]) for of_path in parts]
        if len(set(labels)) == len(labels) and all(labels):
            return [label.replace("/", "_") for label in labels]
    return [f"model_{number}" for number in range(1, len(paths) + 1)]
