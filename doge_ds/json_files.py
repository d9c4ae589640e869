"""JSON files, written in one piece or not at all."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Any) -> None:
    """Write or replace `path`. A reader, or a kill in the middle, sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(without_nan(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def without_nan(values: Any) -> Any:
    """The same with NaN and infinities as None: JSON has no word for them."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
