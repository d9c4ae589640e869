"""Where an evaluation's results go, and what its tables look like."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_ds.errors import ConfigError
from doge_ds.evaluation.comparison import Row, as_csv, as_json, as_markdown
from doge_ds.json_files import parse_json, write_json

VERSION = 1
COMPARISON = "comparison.json"


class Output:
    """A file for one model's results, or of several models a folder."""

    def __init__(self, path: Path, model_count: int) -> None:
        """Look at the place; nothing is written yet.

        Raises:
            ConfigError: nothing can be written there, or something else is there.
        """
        if not path.name:
            raise ConfigError(f"--output {path}", "names no file", "give the name of one")
        self.path = path
        self._is_folder = model_count > 1
        self.unfinished = path / "unfinished" if self._is_folder else path.with_name(f"{path.name}.unfinished")
        where = f"--output {path}"
        try:
            place = path if self._is_folder and path.is_dir() else path.absolute().parent
            path.exists()  # a name may be too long
            # Only writing shows whether one can: rights say little on network and read-only file systems.
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            problem = f"nothing can be written there ({error.strerror})"
            remedy = f"name a {'folder' if self._is_folder else 'file'} in a folder that is there and yours"
            raise ConfigError(where, problem, remedy) from None
        if self._is_folder:
            others = [file.name for file in path.iterdir()] if path.is_dir() else []
            if path.is_file() or (others and not {COMPARISON, "unfinished"} & set(others)):
                raise ConfigError(where, "exists and is no comparison of ours", "name another folder")
        elif path.exists() and not _is_ours(path):
            raise ConfigError(where, "exists and holds no results of ours", "name another file")

    def results_file(self, label: str) -> Path:
        """Where one model's results go."""
        return self.path / f"{label}.json" if self._is_folder else self.path

    def samples_folder(self, label: str) -> Path:
        """Where the questions and answers of one model's tasks go."""
        file = self.results_file(label)
        return file.with_name(f"{file.stem}_samples")

    def write_results(self, label: str, results: Mapping[str, Any]) -> Path:
        """Write one model's results; an infinite perplexity becomes null. Returns the file."""
        file = self.results_file(label)
        file.parent.mkdir(exist_ok=True)
        write_json(file, results)
        return file

    def write_samples(self, label: str, task: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write one task's questions and answers, a JSON object a line."""
        folder = self.samples_folder(label)
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")

    def write_comparison(self, models: Sequence[str], rows: Sequence[Row]) -> None:
        """Write comparison.json, .csv and .md; `models` are the labels."""
        values = {"version": VERSION, "models": list(models), "rows": as_json(rows)}
        (self.path / COMPARISON).with_suffix(".csv").write_text(as_csv(rows), encoding="utf-8")
        (self.path / COMPARISON).with_suffix(".md").write_text(as_markdown(rows), encoding="utf-8")
        write_json(self.path / COMPARISON, values)


def perplexity_table(perplexity: Mapping[str, Any]) -> str:
    """Domains and averages, for the terminal."""
    domains = perplexity["domains"]
    width = max(len("geometric mean"), *map(len, domains))
    head = f"{'domain':<{width}}  {'log-perplexity':>14}  {'95% interval':>18}  {'perplexity':>12}  {'bits/byte':>9}"
    lines = [f"{head}  {'tokens':>12}"]
    for name, d in domains.items():
        low, high = d["interval"]
        lines.append(
            f"{name:<{width}}  {d['log_perplexity']:>14.4f}  {f'{low:.4f} - {high:.4f}':>18}  {d['perplexity']:>12,.2f}"
            f"  {d['bits_per_byte']:>9.4f}  {d['tokens']:>12,}"
        )
    mean = f"{'mean':<{width}}  {perplexity['average_log_perplexity']:>14.4f}"
    lines.append(f"{mean}  {'':>18}  {perplexity['average_perplexity']:>12,.2f}")
    lines.append(f"{'geometric mean':<{width}}  {'':>14}  {'':>18}  {perplexity['geometric_perplexity']:>12,.2f}")
    lines.append(f"worst domain: {perplexity['worst_domain']}, {perplexity['worst_log_perplexity']:.4f}")
    return "\n".join(lines)


def tasks_table(results: Mapping[str, Any]) -> str:
    """Tasks and their mean accuracy, for the terminal."""
    tasks = results["tasks"]
    width = max(len("mean"), *map(len, tasks))
    lines = [f"{'task':<{width}}  {'acc':>7}  {'stderr':>7}  {'acc_norm':>8}  {'stderr':>7}  {'questions':>9}"]
    for name, task in tasks.items():
        cells = [_number(task.get(key), 4) for key in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")]
        lines.append(
            f"{name:<{width}}  {cells[0]:>7}  {cells[1]:>7}  {cells[2]:>8}  {cells[3]:>7}  {task['questions']:>9,}"
        )
    lines.append(f"{'mean':<{width}}  {_number(results['mean_accuracy'], 4):>7}")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _is_ours(file: Path) -> bool:
    try:
        found = parse_json(file.read_bytes(), any_number=True)
    except (ValueError, OSError):
        return False
    # A mixture and a manifest have a version too.
    has_results = isinstance(found, dict) and any(isinstance(found.get(key), dict) for key in ("perplexity", "tasks"))
    return has_results and found.get("version") == VERSION
