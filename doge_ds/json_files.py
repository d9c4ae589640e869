"""JSON files, read with one line for a mistake, and written in one piece or not at all."""

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from doge_ds.errors import ConfigError

# No file of ours is half as deep. Python's own writer with an indent ends in RecursionError at some hundred.
_DEEPEST = 64
# Whole numbers of fewer digits fit into 64 bits with a sign; so do some of as many.
_SURE_DIGITS = 19


def read_json_object(path: Path, any_number: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        any_number: as in `parse_json`.

    Raises:
        ConfigError: it does not, with line and column where that can be told, or it cannot be read.
    """
    try:
        values = parse_json(read_bytes(path), any_number)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is no UTF-8 text", "write it as JSON") from None
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise ConfigError(where, f"is no JSON ({error.msg})", "mend it there") from None
    except ValueError as error:
        raise ConfigError(str(path), f"is no JSON of ours ({error})", "mend it there") from None
    if not isinstance(values, dict):
        raise ConfigError(str(path), "holds no JSON object", "start it with {")
    return values


def read_bytes(path: Path) -> bytes:
    """The file's. Raises OSError, also for a path with a NUL in it, which Python has a ValueError for."""
    try:
        return path.read_bytes()
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None


def parse_json(text: bytes | str, any_number: bool = False) -> Any:
    """What a JSON text says.

    Args:
        any_number: whole numbers beyond 64 bits become floats, and NaN and infinities are taken, which JSON has no
            words for: that is how others write what they have measured. Otherwise they are mistakes.

    Raises:
        ValueError: it is no JSON, no UTF-8, says a name twice in one object, has half of a surrogate pair, is nested
            too deeply, or has a number that is refused.
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    if decoded.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    try:
        if any_number:
            values = json.loads(decoded, parse_int=_any_whole_number, object_pairs_hook=_object)
        else:
            values = json.loads(
                decoded,
                parse_int=_whole_number,
                parse_float=_finite_number,
                parse_constant=_no_number,
                object_pairs_hook=_object,
            )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deeper(values, _DEEPEST):
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    if "\\u" in decoded:
        check_characters(json.dumps(values, ensure_ascii=False))
    return values


def is_inside(name: Any) -> bool:
    """Whether a name of a file, as a JSON file in a folder gives it, stays inside of that folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def check_characters(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which JSON and command lines can spell and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it has {ascii(text[error.start])[1:-1]}, half of a character") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {twice!r} twice")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) < _SURE_DIGITS or (len(digits) <= _SURE_DIGITS + 1 and -(2**63) <= int(digits) < 2**63):
        return int(digits)
    raise ValueError(f"{digits[:_SURE_DIGITS]}... is a number of {len(digits)} digits, more than 64 bits hold")


def _any_whole_number(digits: str) -> int | float:
    try:
        return _whole_number(digits)
    except ValueError:
        return float(digits)


def _finite_number(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word[:_SURE_DIGITS]} is no number that JSON or a float could hold")


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists are nested more than `depth` deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if inside and not depth:
        return True
    return any(_is_deeper(inner, depth - 1) for inner in inside if isinstance(inner, dict | list))


def copy_contents(folder: Path, to: Path) -> None:
    """Copy a folder's files into another one, made where it is not there, with the rights that new files get here:
    shutil.copytree would take over those of a store that others may not read, or nobody may write.

    Raises:
        OSError: there is no such folder, or a file cannot be read or written.
    """
    os.listdir(folder)  # rglob finds nothing, and says nothing, where there is none
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            place = to / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def write_json(path: Path, values: Any) -> None:
    """Write or replace `path`. A reader, or a kill in the middle, sees the old file or the new one."""
    write_text(path, json_text(values))


def json_text(values: Any) -> str:
    """As `write_json` writes them."""
    return json.dumps(without_nan(values), indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write or replace `path`. A reader, or a kill in the middle, sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def without_nan(values: Any) -> Any:
    """The same with NaN and infinities as None: JSON has no word for them."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
