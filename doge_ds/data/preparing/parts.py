"""Parts: tokens of units, on disk beside the store that they will become, so that no finished work is done again.

    STORE.parts/KEY.N.tokens   the tokens of documents that follow each other, each with its end-of-text token
    STORE.parts/KEY.N.index    INDEX, one record a document
    STORE.parts/KEY.json       UnitRecord: the unit is whole

KEY is a hash of a unit's identity and of all that decides its tokens. So a process that is started again, or another
one that works on the same store, finds what is done whatever the number of processes, and a file that was changed has
another key. A file is written under a temporary name and renamed when it is whole, the index last.
"""

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from doge_ds.data.reading.sources import content_hash
from doge_ds.data.reading.units import Unit
from doge_ds.errors import StoreError

FORMAT_VERSION = 1  # of what is in a part; part of every key
# Bytes of text after which a part ends, with the document at hand: what is tokenized again after a kill, at most.
PART_BYTES = 1 << 26
LONGEST_DOCUMENT = 2**32 - 1  # bytes and tokens, which INDEX holds in 32 bits

INDEX = np.dtype([("hash", "<u8"), ("tokens", "<u4"), ("bytes", "<u4"), ("domain", "<u2")])
"""content_hash; tokens with the end-of-text token; bytes of UTF-8; place in UnitRecord.domains."""


_INDEX_RECORD = struct.Struct("<QIIH")


def _to_disk(stream: Any) -> None:
    """A name must not outlive what it names where a machine loses its power."""
    stream.flush()
    os.fsync(stream.fileno())


class UnitRecord(BaseModel):
    """A whole unit: its parts' numbers, its domains in the order in which they turn up, and what was passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    given: str
    parts: list[int]
    domains: list[str]
    empty_documents: int


@dataclass(frozen=True)
class Part:
    """One finished part."""

    tokens_file: Path
    index_file: Path
    domains: list[str]

    def index(self) -> npt.NDArray[Any]:
        """[documents], INDEX."""
        return np.fromfile(self.index_file, dtype=INDEX)


class PartsFolder:
    """The parts of one store to be."""

    def __init__(self, path: Path, dtype: str, options: Sequence[Any]) -> None:
        """Args: the folder, which need not exist; of the token ids; JSON of what decides the tokens of a document."""
        self.path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._options = [FORMAT_VERSION, PART_BYTES, dtype, *options]

    def key(self, unit: Unit) -> str:
        """32 hex digits: what the unit's files are called."""
        text = json.dumps([*self._options, unit.identity], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def record(self, key: str) -> UnitRecord | None:
        """The record of a unit, or None where it is not whole."""
        try:
            record = UnitRecord.model_validate_json((self.path / f"{key}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return record if all(self.has_part(key, number) for number in record.parts) else None

    def has_part(self, key: str, number: int) -> bool:
        """Whether a part is there, with as many tokens as its index says (a machine may have died while it wrote)."""
        tokens, index = self._files(key, number)
        try:
            documents = np.fromfile(index, dtype=INDEX)
            size = int(documents["tokens"].sum(dtype=np.int64)) * self._dtype.itemsize
            return size > 0 and size == tokens.stat().st_size
        except FileNotFoundError:
            return False

    def part(self, key: str, number: int, record: UnitRecord) -> Part:
        """A part of a whole unit."""
        return Part(*self._files(key, number), record.domains)

    @contextmanager
    def new_part(self, key: str, number: int) -> Iterator["PartWriter"]:
        """A part to fill; it gets its name when the block ends well."""
        tokens, index = self._files(key, number)
        temporary = self._temporary(tokens)
        try:
            with temporary.open("wb") as stream:
                writer = PartWriter(stream, self._dtype)
                yield writer
                _to_disk(stream)
            temporary.rename(tokens)
            temporary = self._temporary(index)
            with temporary.open("wb") as stream:
                stream.write(writer.index)
                _to_disk(stream)
            temporary.rename(index)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self, key: str, record: UnitRecord) -> None:
        """Write down that a unit is whole."""
        temporary = self._temporary(self.path / f"{key}.json")
        temporary.write_text(record.model_dump_json() + "\n", encoding="utf-8")
        temporary.rename(self.path / f"{key}.json")

    def _files(self, key: str, number: int) -> tuple[Path, Path]:
        return self.path / f"{key}.{number}.tokens", self.path / f"{key}.{number}.index"

    def _temporary(self, file: Path) -> Path:
        """A name that no other process uses: two may do the same part, and the same bytes come out."""
        return file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")


class PartWriter:
    """A part being written."""

    def __init__(self, stream: Any, dtype: "np.dtype[Any]") -> None:
        self._stream, self._dtype = stream, dtype
        self.index = bytearray()  # 18 bytes a document; as Python objects they would be 200

    def append(self, domain: int, text: str, ids: npt.NDArray[Any]) -> int:
        """Add a document: place of its domain in the unit's, text, token ids with the end-of-text token. Its bytes."""
        size = len(text.encode())
        if max(size, len(ids)) > LONGEST_DOCUMENT:
            raise StoreError("a document", f"has {size} bytes, more than {LONGEST_DOCUMENT}", "cut it into several")
        self._stream.write(ids.astype(self._dtype, copy=False).tobytes())
        self.index += _INDEX_RECORD.pack(content_hash(text), len(ids), size, domain)
        return size
