"""What an evaluation has finished so far, one file a piece, so that a killed one goes on where it stopped.

A piece is a domain or a task of one model. Its file's name is a hash of all that its numbers depend on: a changed
model, text or option has another name, and nothing stale is ever read.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doge_ds.errors import ConfigError
from doge_ds.evaluation.windows import DomainLosses
from doge_ds.json_files import parse_json, write_json


class FinishedPieces:
    """A folder of pieces beside the results; removed when these are written."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: made with the first piece."""
        self.folder = folder

    def task(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """A finished task's results, as `add_task` got them, or None; what is damaged is measured again."""
        try:
            found = parse_json(self._file("task", key, ".json").read_bytes(), any_number=True)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def add_task(self, key: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Keep a task's results, which are JSON. Raises ConfigError where they cannot be written."""
        self._make_folder()
        write_json(self._file("task", key, ".json"), results)

    def domain(self, key: Mapping[str, Any]) -> DomainLosses | None:
        """A finished domain's windows, or None; what is damaged is measured again."""
        try:
            with np.load(self._file("domain", key, ".npz"), allow_pickle=False) as arrays:
                return DomainLosses(arrays["nats"], arrays["tokens"])
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
            return None

    def add_domain(self, key: Mapping[str, Any], losses: DomainLosses) -> None:
        """Keep a domain's windows. Raises ConfigError where they cannot be written."""
        self._make_folder()
        file = self._file("domain", key, ".npz")
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, nats=losses.nats, tokens=losses.tokens)
        temporary.replace(file)

    def remove(self) -> None:
        """Remove all of it, and the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot be made ({error.strerror})"
            raise ConfigError(str(self.folder), problem, "name another --output") from None

    def _file(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path:
        text = json.dumps(key, sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}{suffix}"
