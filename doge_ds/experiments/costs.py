"""Floating-point operations of runs, and with them the programs' own checks, each once and not once a seed."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_ds.json_files import write_json
from doge_ds.planning import operations


class Costs:
    """Operations that were counted already; `ranks` is how many every run has."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._found: dict[tuple[Any, ...], float | None] = {}

    def of_run(
        self,
        path: Path,
        settings: Sequence[str],
        mixture: str | None = None,
        untrained: Mapping[str, Any] | None = None,
    ) -> float | None:
        """Operations of a run; None where nobody can count a token's.

        Args:
            path: its run configuration.
            settings: `--set`; the seed makes no difference.
            mixture: `--mixture` of a base.
            untrained: models that a stage before will train, as transformers' configurations by the keys that name
                them, like "doremi.reference".

        Raises:
            DogeError: all that the program would refuse before its first step.
        """
        key = (path, mixture, *(setting for setting in settings if not setting.startswith("training.seed=")))
        if key not in self._found:
            with tempfile.TemporaryDirectory() as folder:
                named = []
                for model_key, model in (untrained or {}).items():
                    model.save_pretrained(Path(folder) / model_key)
                    named.append(f"{model_key}={json.dumps(str(Path(folder) / model_key))}")
                flops = operations(path, [*settings, *named], mixture, self.ranks)
            self._found[key] = flops.total if flops else None
        return self._found[key]

    def of_configuration(self, name: str, values: Mapping[str, Any], mixture: str) -> float | None:
        """The same for a base's configuration that is in no file; `name` is what a mistake in it is told of."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.json"
            write_json(path, values)
            flops = operations(path, [], mixture, self.ranks)
        return flops.total if flops else None
