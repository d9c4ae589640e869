"""RUN/metrics.jsonl: a line for every logged step, once, whatever kills and full disks do in between."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_ds.json_files import without_nan


class MetricsFile:
    """The lines of one run, on the rank that writes them."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Take over the lines up to `first_step`; cut those that a killed run wrote beyond its last checkpoint.

        Attributes:
            seconds: that the run had taken until then.
        """
        self._path = path
        self._unwritten: list[str] = []
        self.seconds = 0.0
        kept: list[str] = []
        for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                line = json.loads(text)
                step, seconds = int(line["step"]), float(line["seconds"])
            except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
                break  # the kill came in the middle of this line
            if step <= first_step:
                kept.append(text + "\n")
                self.seconds = seconds
        if path.exists():
            temporary = path.with_name(path.name + ".tmp")
            with temporary.open("w") as stream:
                stream.write("".join(kept))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)

    def append(self, values: Mapping[str, Any]) -> str | None:
        """Add a line; where the disk is full, keep it until a later call can write it. What is wrong, or None."""
        self._unwritten.append(json.dumps(without_nan(values)) + "\n")
        return self._write()

    def sync(self) -> str | None:
        """Wait until all lines are on disk, so that no checkpoint is newer than the lines before it.

        What is wrong, or None.
        """
        if problem := self._write():
            return f"{self._path}: {problem}"
        if not self._path.exists():
            return None
        try:
            with self._path.open("rb") as stream:
                os.fsync(stream.fileno())
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        return None

    def _write(self) -> str | None:
        if not self._unwritten:
            return None
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab") as stream:
                stream.write("".join(self._unwritten).encode())
        except OSError as error:
            if self._path.exists():
                os.truncate(self._path, size)  # half a line would be taken for the mark of a kill
            return str(error.strerror)
        self._unwritten.clear()
        return None
