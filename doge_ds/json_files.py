"""JSON files, read with one line for a mistake, and written in one piece or not at all."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_ds.errors import ConfigError


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ConfigError with line and column where it does not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is no UTF-8 text", "write it as JSON") from None
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise ConfigError(where, f"is no JSON ({error.msg})", "mend it there") from None
    if not isinstance(values, dict):
        raise ConfigError(str(path), "holds no JSON object", "start it with {")
    return values


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
