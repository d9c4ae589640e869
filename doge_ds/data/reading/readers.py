"""Readers: the documents of a file, streamed in their order, one function for each type; columns.py has the tables.

Whatever cannot be read is named by file and line or row, both counted from 1.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from doge_ds.data.reading.columns import read_parquet
from doge_ds.data.reading.records import kind_of, no_utf8, text_of_record
from doge_ds.errors import StoreError

EXPECTED = "give .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, folders of them, or a dataset's folder"
# What decides about memory. A zstd block of 4 bytes can hold 128 KiB of text, so a read of 4 KiB is 128 MiB at worst.
_ZSTD_READ, _ZSTD_WINDOW = 1 << 12, 1 << 31  # bytes; the window that `zstd --long=31` needs

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
        raise no_utf8(error, str(file)) from None


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
            yield text_of_record(_record_of_line(line, where), text_field, where)


def _record_of_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise no_utf8(error, where) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(where, f"is no JSON ({error})", "write one JSON object a line") from None
    if not isinstance(record, dict):
        raise StoreError(where, f"is {kind_of(record)}, not a JSON object", 'write {"text": "..."}, one a line')
    return record


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_gzip_json_lines,
    ".jsonl.zst": _read_zstd_json_lines,
    ".parquet": read_parquet,
}
