"""metrics.jsonl into columns."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from doge_ds.errors import RunError


@dataclass(frozen=True)
class Metrics:
    """The logged steps of one run.

    Attributes:
        columns: every number of every line, [lines], NaN where it is null or absent; true is 1.
        cosines: of a proxy: cosine between the gradients of each two rows, mean over the logged steps, [rows, rows];
            NaN where a gradient was never finite or always 0.
        cosine_lines: logged steps with a finite Gram matrix.
        last_line_was_cut: the file ends within a line, as a killed run leaves it.
        written: when the file was last written, None where there is none.
    """

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    cosines: np.ndarray | None = None
    cosine_lines: int = 0
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
            not fit the losses (file and line).
    """
    if not path.exists():
        return Metrics()
    columns = _Columns()
    cosines = _Cosines()
    was_cut = False
    try:
        with path.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                try:
                    line = json.loads(text)
                except ValueError as error:
                    if was_cut := not text.endswith(b"\n"):
                        break
                    raise _damaged(path, number, f"is no JSON ({str(error).split(':')[0]})") from None
                if problem := columns.add(line) or cosines.add(line):
                    raise _damaged(path, number, problem)
    except OSError as error:
        raise RunError(str(path), f"cannot be read ({error.strerror})", "check its rights") from None
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Metrics(columns.arrays(), cosines.mean(), cosines.lines, was_cut, written)


def _damaged(path: Path, number: int, problem: str) -> RunError:
    return RunError(f"{path}, line {number}", problem, "take the file from a backup, or cut it before that line")


class _Columns:
    """Numbers by key; a key that a line lacks is NaN there."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._lines = 0

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
            if key == "gram":
                continue
            if not isinstance(value, int | float | None):
                return f"{key} is no number, but {json.dumps(value)[:40]}"
            column = self._values.setdefault(key, [math.nan] * self._lines)
            column.append(math.nan if value is None else float(value))
        self._lines += 1
        for column in self._values.values():
            if len(column) < self._lines:
                column.append(math.nan)
        return ""

    def arrays(self) -> dict[str, np.ndarray]:
        return {key: np.array(values) for key, values in self._values.items()}


class _Cosines:
    """Sums of the lines' cosines. The matrices themselves would be 320 kB a line at 200 domains."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._count: np.ndarray | None = None
        self.lines = 0

    def add(self, line: dict[str, Any]) -> str:
        """Take one line's Gram matrix where it is finite; what is wrong with it, or ""."""
        if "gram" not in line:
            return ""
        rows = sum(key.startswith("loss/") for key in line)
        try:
            gram = np.array(line["gram"], dtype=np.float64)  # null becomes NaN
        except (ValueError, TypeError):
            return "gram is no matrix of numbers"
        if gram.shape != (rows, rows):
            return f"gram has the shape {list(gram.shape)}, the line has {rows} losses"
        if self._sum is None or self._count is None:
            self._sum, self._count = np.zeros((rows, rows)), np.zeros((rows, rows))
        elif gram.shape != self._sum.shape:
            return f"gram has {rows} rows, the lines before have {len(self._sum)}"
        if not np.isfinite(gram).all():
            return ""
        norms = np.sqrt(np.clip(np.diagonal(gram), 0, None))
        product = norms[:, None] * norms[None, :]
        known = product > 0
        self._sum[known] += np.clip(gram[known] / product[known], -1, 1)
        self._count += known
        self.lines += 1
        return ""

    def mean(self) -> np.ndarray | None:
        if self._sum is None or self._count is None or not self.lines:
            return None
        mean: np.ndarray = np.full_like(self._sum, np.nan)
        np.divide(self._sum, self._count, out=mean, where=self._count > 0)
        return mean
