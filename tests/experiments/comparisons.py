"""A small comparison on a small store, for tests."""

import json
from pathlib import Path
from typing import Any

from tests.distributed.small_runs import write_config

MIXTURES: dict[str, Any] = {"uniform": "uniform", "doge": {"proxy": {}}}


def write_comparison(folder: Path, store: Path, name: str = "c", steps: int = 12, **changes: Any) -> Path:
    """FOLDER/<name>.json about the proxy and the base beside it; `changes` replace its keys."""
    training = {"steps": steps, "checkpoint_every": 6, "keep_checkpoints": 1}
    write_config(folder / "proxy.json", store, "proxy", training=training)
    write_config(folder / "base.json", store, "base", training=training)
    values = {"proxy": "proxy.json", "base": "base.json", "seeds": [0, 1], "mixtures": MIXTURES, **changes}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path
