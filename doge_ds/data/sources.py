"""Documents: read from files and folders, surveyed, and parted into train and held-out ones.

Whatever cannot be read is named by file and line.
"""

import gzip
import hashlib
import heapq
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_ds.errors import StoreError

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
# Characters. Of a longer document only the beginning is drawn for a sample, lest one book make up the whole of it.
_LONGEST_DRAWN = 1 << 20
_EXPECTED = "give .jsonl, .jsonl.gz or .txt files, or folders of them"


@dataclass
class Skipped:
    """What a reader passed over: files of other types in folders, and documents without a letter."""

    files: list[str] = field(default_factory=list)
    empty_documents: int = 0

    def notes(self) -> list[str]:
        """A line on each sort of thing that was skipped."""
        files = f"skipped {len(self.files)} files of other types, such as {self.files[0]}" if self.files else ""
        empty = f"skipped {self.empty_documents} empty documents" if self.empty_documents else ""
        return [note for note in (files, empty) if note]


@dataclass(frozen=True)
class TextFiles:
    """The documents of one domain, in the order of the paths given and, inside a folder, of relative paths.

    A `.txt` file is one document; in `.jsonl` and `.jsonl.gz` every line is one, its text in `text_field`. Iterating
    reads the files; it can be done again.

    Raises (while iterating):
        StoreError: a path is missing or of another type, a file cannot be read or has no documents, or a line is no
            JSON object with a text.
    """

    paths: Sequence[Path]
    text_field: str = "text"
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def __iter__(self) -> Iterator[str]:
        self.skipped.files.clear()
        self.skipped.empty_documents = 0
        for path in self.paths:
            found = False
            for file in self._files(path):
                for text in self._texts(file):
                    if not text.strip():
                        self.skipped.empty_documents += 1
                        continue
                    found = True
                    yield text
            if not found:
                raise StoreError(str(path), "holds no documents", "give text, or leave it out")

    def _files(self, path: Path) -> Iterator[Path]:
        if path.is_dir():
            yield from self._files_of_folder(path)
        elif not path.exists():
            raise StoreError(str(path), "does not exist", f"check the path; {_EXPECTED}")
        elif not path.name.endswith(SUFFIXES):
            raise StoreError(str(path), f"is of an unknown type ({path.suffix or 'no suffix'})", _EXPECTED)
        else:
            yield path

    def _files_of_folder(self, folder: Path) -> Iterator[Path]:
        try:
            inside = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        except OSError as error:
            raise _unreadable(folder, error) from None
        for name in sorted(inside):
            if name.endswith(SUFFIXES):
                yield inside[name]
            else:
                self.skipped.files.append(str(inside[name]))

    def _texts(self, file: Path) -> Iterator[str]:
        try:
            if file.suffix == ".txt":
                yield _decode(file.read_bytes(), str(file))
                return
            with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield self._text_of_line(line, f"{file}, line {number}")
        except EOFError:
            raise StoreError(str(file), "is cut short: its gzip stream has no end", "copy the file again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise StoreError(str(file), f"is no sound gzip file ({error})", "copy or compress the file again") from None
        except OSError as error:
            raise _unreadable(file, error) from None

    def _text_of_line(self, line: bytes, where: str) -> str:
        try:
            record: Any = json.loads(_decode(line, where))
        except (ValueError, RecursionError) as error:
            raise StoreError(where, f"is no JSON ({error})", "write one JSON object a line") from None
        if not isinstance(record, dict):
            raise StoreError(where, f"is {_kind(record)}, not a JSON object", 'write {"text": "..."}, one a line')
        if self.text_field not in record:
            fields = ", ".join(repr(name) for name in list(record)[:8]) or "none"
            raise StoreError(where, f"has no field {self.text_field!r}, only {fields}", "name it with --text_field")
        text = record[self.text_field]
        if not isinstance(text, str):
            raise StoreError(where, f"field {self.text_field!r} is {_kind(text)}, not a string", "write text there")
        if not text.isascii():
            _refuse_half_characters(text, where)
        return text


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(
            where, f"is no UTF-8 (byte {error.start}: 0x{raw[error.start]:02x})", "convert it, for example with iconv"
        ) from None


def _refuse_half_characters(text: str, where: str) -> None:
    r"""JSON can spell half of a surrogate pair, "\ud83d", which is no character and has no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise StoreError(where, f"holds {half}, half of a surrogate pair", "write whole characters") from None


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(str(path), f"cannot be read ({error.strerror or error})", "check the path and its rights")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "a string")


def content_hash(text: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class HeldOut:
    """Which documents are held out: those whose hash is small. Equal documents stand on one side, in all domains.

    Attributes:
        threshold: hashes below it are held out.
        moved_in, moved_out: hashes of the documents that stand on the other side, so that no side of a domain is empty.
    """

    threshold: int
    moved_in: frozenset[int] = frozenset()
    moved_out: frozenset[int] = frozenset()

    def holds(self, digest: int) -> bool:
        """Whether the document with this `content_hash` is held out."""
        return digest in self.moved_in or (digest < self.threshold and digest not in self.moved_out)


@dataclass
class Survey:
    """What one pass over a domain finds: counts, the extremes of the hashes, and text to train a tokenizer on.

    The sample consists of the train documents with the smallest hashes, each once, in the order of their hashes, until
    there are `sample_bytes` bytes: a random draw that depends neither on the documents' order nor on a seed.
    """

    threshold: int
    sample_bytes: int
    documents: int = 0
    bytes: int = 0
    smallest: int = 1 << 64
    largest: int = -1
    _heap: list[tuple[int, str]] = field(default_factory=list)  # (-hash, text): the largest hash on top
    _drawn: dict[int, int] = field(default_factory=dict)  # hash -> bytes
    _sampled: int = 0

    def add(self, text: str) -> int:
        """Count a document. Its bytes."""
        digest, size = content_hash(text), len(text.encode())
        self.documents += 1
        self.bytes += size
        self.smallest = min(self.smallest, digest)
        self.largest = max(self.largest, digest)
        if self.sample_bytes and digest >= self.threshold and digest not in self._drawn:
            self._draw(digest, text[:_LONGEST_DRAWN])
        return size

    def _draw(self, digest: int, text: str) -> None:
        if self._sampled >= self.sample_bytes and digest > -self._heap[0][0]:
            return
        heapq.heappush(self._heap, (-digest, text))
        self._drawn[digest] = len(text.encode())
        self._sampled += self._drawn[digest]
        while self._sampled - self._drawn[-self._heap[0][0]] >= self.sample_bytes:
            self._sampled -= self._drawn.pop(-heapq.heappop(self._heap)[0])

    def sample(self, held_out: HeldOut) -> list[str]:
        """The texts to train a tokenizer on, none of them held out."""
        return [text for digest, text in sorted(self._heap, reverse=True) if not held_out.holds(-digest)]


def held_out_rule(surveys: Mapping[str, Survey], threshold: int) -> HeldOut:
    """The rule for all domains. Where chance leaves a side of a domain empty, one document changes sides.

    That is the one with the smallest hash if none would be held out, the one with the largest if all would be.

    Raises:
        StoreError: a domain has no two different documents.
    """
    moved_in, moved_out = set(), set()
    for name, found in surveys.items():
        if found.smallest >= found.largest:
            count = "one document" if found.documents == 1 else f"{found.documents} copies of one document"
            raise StoreError(
                f"domain {name}",
                f"has only {count}, and the held-out split takes whole documents",
                "give it at least two different ones, for example by cutting the text at its chapters",
            )
        if found.smallest >= threshold:
            moved_in.add(found.smallest)
        if found.largest < threshold:
            moved_out.add(found.largest)
    return HeldOut(threshold, frozenset(moved_in), frozenset(moved_out))
