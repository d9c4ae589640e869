"""A document's text in its record, a JSON line or a table's row; and what is said where it is not there."""

from collections.abc import Iterator, Mapping
from typing import Any

from doge_ds.errors import StoreError

_NAMES = 16  # fields that a message lists at most


def text_of_record(record: Mapping[str, Any], text_field: str, where: str) -> str:
    """The text in `text_field`, which `a.b` names where b stands inside of a.

    Raises:
        StoreError: it is missing, no string, or no Unicode text; `where` is the file and the line or row.
    """
    try:
        text = find(record, text_field)
    except KeyError:
        raise no_field(record, text_field, where) from None
    if not isinstance(text, str):
        raise StoreError(where, f"field {text_field!r} is {kind_of(text)}, not a string", "write text there")
    if not text.isascii():
        _refuse_half_characters(text, where)
    return text


def find(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, which `a.b` names where b stands inside of a. Raises KeyError."""
    if name in record:
        return record[name]
    outer, dot, inner = name.partition(".")
    if not dot:
        raise KeyError(name)
    found = record[outer]
    if found is None:
        return None
    if not isinstance(found, dict):
        raise KeyError(name)
    return find(found, inner)


def no_field(record: Mapping[str, Any], text_field: str, where: str) -> StoreError:
    """The error that names the fields there are, nested ones with dots."""
    names = [repr(name) for name in _names(record)]
    listed = ", ".join(names[:_NAMES]) or "none"
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return StoreError(where, f"has no field {text_field!r}, only {listed}{more}", "name it with --text_field")


def _names(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _refuse_half_characters(text: str, where: str) -> None:
    r"""JSON can spell half of a surrogate pair, "\ud83d", which is no character and has no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise StoreError(where, f"holds {half}, half of a surrogate pair", "write whole characters") from None


def no_utf8(error: UnicodeDecodeError, where: str) -> StoreError:
    """The error that names the first byte that is wrong."""
    byte = f"byte {error.start}: 0x{error.object[error.start]:02x}"
    return StoreError(where, f"is no UTF-8 ({byte})", "convert it, for example with iconv")


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "a string" if isinstance(value, str) else f"of type {type(value).__name__}")
