"""Readers: the documents of a file, or of a dataset that Hugging Face's library saved, streamed in their order.

One function for each type. Whatever cannot be read is named by file and line or row, both counted from 1. pyarrow,
datasets and zstandard are imported where such a file is met, because they take two seconds together.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from doge_ds.errors import StoreError

EXPECTED = "give .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, folders of them, or a dataset's folder"
# What decides about memory. A zstd block of 4 bytes can hold 128 KiB of text, so a read of 4 KiB is 128 MiB at worst.
_ZSTD_READ, _ZSTD_WINDOW = 1 << 12, 1 << 31  # bytes; the window that `zstd --long=31` needs
_PARQUET_READ, _ROWS = 1 << 20, 128  # bytes of a column, rows at a time
_NAMES = 16  # fields that a message lists at most

_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
# What users take for one of the types above, by ending; the first that fits.
_LOOK_ALIKES = {
    ("dataset_dict.json", "dataset_info.json", "state.json", ".arrow"): "give the folder that save_to_disk made",
    (".json", ".ndjson"): "if every line of it is a JSON object, rename it to .jsonl",
    (".json.gz", ".ndjson.gz"): "if every line of it is a JSON object, rename it to .jsonl.gz",
    (".json.zst", ".ndjson.zst"): "if every line of it is a JSON object, rename it to .jsonl.zst",
    (".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2"): "unpack it and give the folder",
    (".jsonl.bz2", ".jsonl.xz", ".jsonl.lz4"): "compress it with gzip or zstd instead",
    _COMPRESSED: "decompress it; only JSON lines may be compressed",
    (".csv", ".tsv"): "convert it, for example with pandas: read_csv(...).to_parquet(...)",
}


def look_alike(file: Path) -> str | None:
    """What to do about a file of a type that is not read, where that can be told from its name."""
    return next((remedy for endings, remedy in _LOOK_ALIKES.items() if file.name.endswith(endings)), None)


def type_of(file: Path) -> str:
    """The ending of a file's name that tells its type, such as .json.gz."""
    return "".join(file.suffixes[-2:]) if file.suffix in _COMPRESSED else file.suffix or "no suffix"


def is_readable(file: Path) -> bool:
    """Whether a file is of a type that `read_file` reads, by its name."""
    return file.name.endswith(tuple(_READERS))


def read_file(file: Path, text_field: str) -> Iterator[str]:
    """The documents of a file: a `.txt` file is one; elsewhere each line or row is, its text in `text_field`.

    Raises:
        StoreError: the file is damaged or cannot be read, or a line or row has no text in `text_field`.
    """
    read = next(reader for ending, reader in _READERS.items() if file.name.endswith(ending))
    try:
        yield from read(file, text_field)
    except OSError as error:
        raise unreadable(file, error) from None


def unreadable(path: Path, error: OSError) -> StoreError:
    """The error for what the operating system does not let us read."""
    return StoreError(str(path), f"cannot be read ({error.strerror or error})", "check the path and its rights")


def _read_text(file: Path, _: str) -> Iterator[str]:
    try:
        yield file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_utf8(error, str(file)) from None


# JSON lines.


def _read_json_lines(file: Path, text_field: str) -> Iterator[str]:
    with file.open("rb") as stream:
        yield from _texts_of_lines(stream, file, text_field)


def _read_gzip_json_lines(file: Path, text_field: str) -> Iterator[str]:
    try:
        with gzip.open(file, "rb") as stream:
            yield from _texts_of_lines(stream, file, text_field)
    except EOFError:
        raise StoreError(str(file), "is cut short: its gzip stream has no end", "copy the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise StoreError(str(file), f"is no sound gzip file ({error})", "copy or compress the file again") from None


def _read_zstd_json_lines(file: Path, text_field: str) -> Iterator[str]:
    import zstandard

    try:
        yield from _texts_of_lines(_lines(_zstd_blocks(file)), file, text_field)
    except zstandard.ZstdError as error:
        reason = str(error).rpartition(": ")[2]  # it begins with "zstd decompressor error: "
        raise StoreError(str(file), f"is no sound zstd file ({reason})", "copy or compress the file again") from None


def _zstd_blocks(file: Path) -> Iterator[bytes]:
    """The content of all frames. zstandard's own stream readers take the end of a file cut short for its end."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = None
    with file.open("rb") as stream:
        while block := stream.read(_ZSTD_READ):
            while block:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(block)
                block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise StoreError(str(file), "is cut short: its last zstd frame has no end", "copy the file again")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line that has not ended, joined once: a line may be as long as many blocks
    for block in blocks:
        first, *rest = block.split(b"\n")
        parts.append(first)
        for part in rest:
            yield b"".join(parts)
            parts = [part]
    yield b"".join(parts)


def _texts_of_lines(lines: Iterable[bytes], file: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield _text_of_record(_record_of_line(line, where), text_field, where)


def _record_of_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _no_utf8(error, where) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(where, f"is no JSON ({error})", "write one JSON object a line") from None
    if not isinstance(record, dict):
        raise StoreError(where, f"is {_kind(record)}, not a JSON object", 'write {"text": "..."}, one a line')
    return record


# Columns: Parquet files and saved datasets.


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Both options: without them a whole column of a row group, or of the whole file, is read ahead into memory.
        with parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=_PARQUET_READ, page_checksum_verification=True
        ) as opened:
            column = _column(opened.schema_arrow, text_field, str(file))
            batches = opened.iter_batches(_ROWS, columns=[text_field], use_threads=False)
            yield from _texts_of_batches(batches, column, text_field, str(file))
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's; pyarrow's own have no number
        raise StoreError(
            str(file), f"is no sound Parquet file ({_first_line(error)})", "copy or write the file again"
        ) from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made this folder."""
    marks = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
    return any(all((folder / name).is_file() for name in names) for names in marks)


def open_saved_dataset(folder: Path) -> tuple[Any, list[str]]:
    """A dataset, memory-mapped, and the names of the splits passed over: of several, `train` is taken.

    Raises:
        StoreError: the folder is damaged, or has splits but none named train.
    """
    import datasets

    try:
        splits = _splits(folder)
        if splits and "train" not in splits:
            raise StoreError(
                str(folder), f"has no split 'train', only {', '.join(splits)}", f"name one, as in {folder}/{splits[0]}"
            )
        # Of several splits this one alone: datasets cannot load a whole that has an empty one.
        dataset = datasets.load_from_disk(str(folder / "train" if splits else folder), keep_in_memory=False)
    except StoreError:
        raise
    except Exception as error:  # OSError, KeyError, ValueError, AttributeError, pyarrow's own: all mean the same
        raise _unsound_dataset(folder, error) from None
    return dataset, [name for name in splits if name != "train"]


def _splits(folder: Path) -> list[str]:
    listed = folder / "dataset_dict.json"
    return list(map(str, json.loads(listed.read_bytes())["splits"])) if listed.is_file() else []


def read_saved_dataset(dataset: Any, folder: Path, text_field: str) -> Iterator[str]:
    """The documents of a dataset that `open_saved_dataset` opened, a row each; only the text's column is read.

    Raises:
        StoreError: the dataset is damaged, or a row has no text in `text_field`.
    """
    import pyarrow

    column = _column(dataset.features.arrow_schema, text_field, str(folder))
    try:
        batches = map(_validated, dataset.select_columns([column]).with_format("arrow").iter(_ROWS))
        yield from _texts_of_batches(batches, column, text_field, str(folder))
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise _unsound_dataset(folder, error) from None


def _validated(batch: Any) -> Any:
    """Saved datasets have no checksums, and an offset that points outside of the text would end the process."""
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):  # that is found once more where its row is known
            raise
    return batch


def _unsound_dataset(folder: Path, error: Exception) -> StoreError:
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return StoreError(str(folder), f"is no sound Hugging Face dataset ({reason})", "copy or save it again")


def _column(schema: Any, text_field: str, where: str) -> str:
    """The name of the column that holds the field."""
    fields = _nested(schema)
    try:
        _find(fields, text_field)
    except KeyError:
        raise _no_field(fields, text_field, where) from None
    column = text_field if text_field in fields else text_field.partition(".")[0]
    if schema.names.count(column) > 1:
        raise StoreError(where, f"has several columns named {column!r}", "give them different names")
    return column


def _nested(fields: Iterable[Any]) -> dict[str, Any]:
    """The types of a pyarrow schema's or struct's fields, structs as objects."""
    from pyarrow import types

    return {field.name: _nested(field.type) if types.is_struct(field.type) else field.type for field in fields}


def _texts_of_batches(batches: Iterable[Any], column: str, text_field: str, source: str) -> Iterator[str]:
    row = 0
    for batch in batches:
        for value in batch.column(column):
            row += 1
            where = f"{source}, row {row}"
            try:
                record = {column: value.as_py()}
            except UnicodeDecodeError as error:
                raise _no_utf8(error, where) from None
            yield _text_of_record(record, text_field, where)


# Records: what a line and a row have in common.


def _text_of_record(record: Mapping[str, Any], text_field: str, where: str) -> str:
    try:
        text = _find(record, text_field)
    except KeyError:
        raise _no_field(record, text_field, where) from None
    if not isinstance(text, str):
        raise StoreError(where, f"field {text_field!r} is {_kind(text)}, not a string", "write text there")
    if not text.isascii():
        _refuse_half_characters(text, where)
    return text


def _find(record: Mapping[str, Any], name: str) -> Any:
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
    return _find(found, inner)


def _no_field(record: Mapping[str, Any], text_field: str, where: str) -> StoreError:
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


def _no_utf8(error: UnicodeDecodeError, where: str) -> StoreError:
    byte = f"byte {error.start}: 0x{error.object[error.start]:02x}"
    return StoreError(where, f"is no UTF-8 ({byte})", "convert it, for example with iconv")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "a string" if isinstance(value, str) else f"of type {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:; ")


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_gzip_json_lines,
    ".jsonl.zst": _read_zstd_json_lines,
    ".parquet": _read_parquet,
}
