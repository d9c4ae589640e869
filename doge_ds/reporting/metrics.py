"""metrics.jsonl into columns."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from doge_ds.errors import RunError
from doge_ds.json_files import parse_json

# Axes overflow before floats do; the largest fp32 is 3e38.
_INFINITE = 1e300
# Not numbers of the step: the Gram matrix, the names of its rows, and what the run warned of.
_OTHER_KEYS = ("gram", "gram_rows", "warnings")


@dataclass(frozen=True)
class Metrics:
    """The logged steps of one run.

    Attributes:
        columns: every number of every line, [lines], NaN where it is absent or not finite (1e300 counts as infinite);
            true is 1.
        not_finite: lines, counted from 0, at which a key is there without a finite number; of those keys only.
        cosine_rows: domains and targets that had a row in a Gram matrix, in the order of their first.
        cosines: of a proxy: cosine between the gradients of each two rows, mean over the logged steps that have both,
            [rows, rows]; NaN where none has, or a gradient was never finite or always 0.
        cosine_counts: logged steps that each mean is over, [rows, rows].
        cosine_lines: logged steps with a finite number in their Gram matrix.
        warnings: steps done, and what the run warned of then.
        last_line_was_cut: the file ends within a line, as a killed run leaves it.
        written: when the file was last written, None where there is none.
    """

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    not_finite: Mapping[str, Sequence[int]] = field(default_factory=dict)
    cosine_rows: list[str] = field(default_factory=list)
    cosines: np.ndarray | None = None
    cosine_counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    cosine_lines: int = 0
    warnings: list[tuple[int, str]] = field(default_factory=list)
    last_line_was_cut: bool = False
    written: datetime | None = None

    @property
    def steps(self) -> np.ndarray:
        """Steps done at each line, [lines]."""
        return self.columns.get("step", np.empty(0))

    def names(self, prefix: str) -> list[str]:
        """Domains (or rows) that have a column `prefix<domain>`, in the file's order."""
        return [key.removeprefix(prefix) for key in self.columns if key.startswith(prefix)]

    def last(self, key: str) -> float | None:
        """The last finite number of a column."""
        values = self.columns.get(key, np.empty(0))
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None

    def middle(self, key: str) -> float | None:
        """The median of a column's finite numbers."""
        values = self.columns.get(key, np.empty(0))
        finite = values[np.isfinite(values)]
        return float(np.median(finite)) if len(finite) else None


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; no such file is no line.

    A last line without its end is what a kill leaves, or what a running program is about to finish; it is left out.

    Raises:
        RunError: a line is no JSON object, has no step, steps do not rise, a value is no number, or a Gram matrix does
            not fit its rows (file and line).
    """
    if not path.exists():
        return Metrics()
    columns = _Columns()
    cosines = _Cosines()
    warnings: list[tuple[int, str]] = []
    was_cut = False
    try:
        with path.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                try:
                    line = parse_json(text, any_number=True)
                except ValueError as error:
                    if was_cut := not text.endswith(b"\n"):
                        break
                    raise _damaged(path, number, f"is no JSON ({str(error).split(':')[0]})") from None
                if problem := columns.add(line) or cosines.add(line):
                    raise _damaged(path, number, problem)
                warnings += [(line["step"], str(text)) for text in line.get("warnings", [])]
    except OSError as error:
        raise RunError(str(path), f"cannot be read ({error.strerror})", "check its rights") from None
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Metrics(
        columns=columns.arrays(),
        not_finite=columns.not_finite,
        cosine_rows=cosines.rows,
        cosines=cosines.mean(),
        cosine_counts=cosines.counts,
        cosine_lines=cosines.lines,
        warnings=warnings,
        last_line_was_cut=was_cut,
        written=written,
    )


def _damaged(path: Path, number: int, problem: str) -> RunError:
    return RunError(f"{path}, line {number}", problem, "take the file from a backup, or cut it before that line")


class _Columns:
    """Numbers by key; a key that a line lacks is NaN there."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._lines = 0
        self.not_finite: dict[str, list[int]] = {}

    def add(self, line: Any) -> str:
        """Take one line; what is wrong with it, or ""."""
        if not isinstance(line, dict):
            return "holds no JSON object"
        step = line.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or step < 1:
            return f"has no step, but {json.dumps(step)}"
        if self._lines and step <= self._values["step"][-1]:
            return f"step {step} follows step {self._values['step'][-1]:.0f}"
        for key, value in line.items():
            if key in _OTHER_KEYS:
                continue
            if not isinstance(value, int | float | None):
                return f"{key} is no number, but {json.dumps(value)[:40]}"
            self._add_number(key, value)
        self._lines += 1
        for column in self._values.values():
            if len(column) < self._lines:
                column.append(math.nan)
        return ""

    def _add_number(self, key: str, value: float | None) -> None:
        column = self._values.setdefault(key, [math.nan] * self._lines)
        if value is not None and abs(value) < _INFINITE:
            column.append(float(value))
        else:
            column.append(math.nan)
            self.not_finite.setdefault(key, []).append(self._lines)

    def arrays(self) -> dict[str, np.ndarray]:
        return {key: np.array(values) for key, values in self._values.items()}


class _Cosines:
    """Sums of the lines' cosines. The matrices themselves would be 320 kB a line at 200 domains."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._sum = np.zeros((0, 0))
        self.counts = np.zeros((0, 0))
        self.lines = 0

    @property
    def rows(self) -> list[str]:
        return list(self._places)

    def add(self, line: dict[str, Any]) -> str:
        """Take what is finite of one line's Gram matrix; what is wrong with it, or ""."""
        if line.get("gram") is None:
            return ""
        names = line.get("gram_rows", [key.removeprefix("loss/") for key in line if key.startswith("loss/")])
        if problem := _problem_of_rows(names):
            return problem
        try:
            gram = np.array(line["gram"], dtype=np.float64)  # null becomes NaN
        except (ValueError, TypeError):
            return "gram is no matrix of numbers"
        if gram.shape != (len(names), len(names)):
            kind = "gram_rows" if "gram_rows" in line else "losses"
            return f"gram has the shape {list(gram.shape)}, the line has {len(names)} {kind}"
        self._sum_up(names, gram)
        return ""

    def _sum_up(self, names: Sequence[str], gram: np.ndarray) -> None:
        """Add the cosines of one matrix, [rows, rows], where they are known."""
        for name in names:
            self._places.setdefault(name, len(self._places))
        if new := len(self._places) - len(self._sum):
            self._sum, self.counts = np.pad(self._sum, (0, new)), np.pad(self.counts, (0, new))
        squares = np.diagonal(gram)
        norms = np.sqrt(np.where(np.isfinite(squares), squares, 0).clip(min=0))
        product = norms[:, None] * norms[None, :]
        known = (product > 0) & np.isfinite(gram)
        cosines = np.divide(gram, product, out=np.zeros_like(gram), where=known).clip(-1, 1)
        places = [self._places[name] for name in names]
        self._sum[np.ix_(places, places)] += cosines
        self.counts[np.ix_(places, places)] += known
        self.lines += bool(np.isfinite(gram).any())

    def mean(self) -> np.ndarray | None:
        if not self.lines:
            return None
        mean: np.ndarray = np.full_like(self._sum, np.nan)
        np.divide(self._sum, self.counts, out=mean, where=self.counts > 0)
        return mean


def _problem_of_rows(names: Any) -> str:
    """What is wrong with the names of a Gram matrix's rows, or ""."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"gram_rows is no list of names, but {json.dumps(names)[:40]}"
    return "" if len(set(names)) == len(names) else "gram_rows names a row twice"
