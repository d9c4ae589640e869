"""What pydantic finds wrong in a JSON file that a user has written, as one line of ours."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from doge_ds.errors import ConfigError, nearest

_LONGEST_VALUE = 200  # characters of a value that cannot stand


def first_mistake(
    kind: type[BaseModel], file: str, error: ValidationError, section: str = "", remedy: str = "mend it there"
) -> ConfigError:
    """One line for the first thing that is wrong.

    Args:
        kind: what the values were read as; its fields are the valid keys.
        file: where they stand.
        section: of the file, where `kind` is not all of it.
        remedy: what to do about values that are well typed and contradict each other.
    """
    # A misspelt key is also a missing one; the misspelling is what the user wants to see.
    first = min(error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden")
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        key = str(location[-1])
        elsewhere = [path for path in _paths(kind, f"{section}." if section else "") if path.split(".")[-1] == key]
        remedy = nearest(key, _keys(kind, location[:-1]), elsewhere)
        return ConfigError(_where(file, section, location), "unknown key", remedy)
    # Inside a choice of types pydantic adds the name of the type that it tried; a user knows keys and positions only.
    cut = next((n for n, part in enumerate(location) if not _is_known(kind, location[:n], part)), len(location))
    where = _where(file, section, location[:cut])
    if first["type"] == "missing":
        return ConfigError(where, "is missing", "add it")
    if first["type"] == "value_error":
        return ConfigError(where, first["msg"].removeprefix("Value error, "), remedy)
    value = json.dumps(first["input"], default=str)[:_LONGEST_VALUE]
    # "Input should be ...", "List should have ...".
    return ConfigError(where, f"{value} cannot stand", re.sub(r"^\w+ (?=should )", "it ", first["msg"]))


def _where(file: str, section: str, location: Sequence[int | str]) -> str:
    key = ".".join([*([section] if section else []), *map(str, location)])
    return f"{file}: {key or 'the file'}"


def _is_known(kind: type[BaseModel], location: Sequence[int | str], part: int | str) -> bool:
    return isinstance(part, int) or part in _keys(kind, location)


def _keys(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Valid keys of what stands at a location; none where it is no section."""
    section: type[BaseModel] | None = kind
    for part in location:
        if section is None or isinstance(part, int):  # an entry of a list: of the list's own type
            continue
        field = section.model_fields.get(part)
        section = _section_in(field.annotation) if field else None
    return list(section.model_fields) if section else []


def _paths(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """All keys of a section and of the sections in it, with dots; not of entries of lists, which have a number."""
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        section = _section_in(field.annotation)
        if section and "list[" not in str(field.annotation):
            yield from _paths(section, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a type is, or is made of: `Section | None`, `list[Section]`."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner))), None)
