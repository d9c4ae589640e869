"""Documents: of files, folders and saved datasets, surveyed, and parted into train and held-out ones."""

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Literal

from doge_ds.data.columns import is_saved_dataset, open_saved_dataset
from doge_ds.data.readers import EXPECTED, is_readable, look_alike, type_of, unreadable
from doge_ds.data.units import Unit, file_units, saved_dataset_units
from doge_ds.errors import ConfigError, StoreError

Inputs = Mapping[str, Sequence[str | Path]] | Literal["environment"]

# Characters. Of a longer document only the beginning is drawn for a sample, lest one book make up the whole of it.
_LONGEST_DRAWN = 1 << 20


def read_inputs(items: Sequence[str]) -> Inputs:
    """What stands after --input: DOMAIN=PATH, a domain as often as it has paths, or environment alone.

    Raises:
        ConfigError: an item is neither.
    """
    if items == ["environment"]:
        return "environment"
    inputs: dict[str, list[str | Path]] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not (separator and path):
            raise ConfigError(
                "--input", f"{item!r} names no domain and path", "write DOMAIN=PATH, or environment alone"
            )
        inputs.setdefault(name, []).append(path)
    return inputs


@dataclass
class Skipped:
    """What was passed over: files of other types in folders, splits of datasets, and documents without a letter."""

    files: list[Path] = field(default_factory=list)
    splits: list[Path] = field(default_factory=list)
    empty_documents: int = 0

    def clear(self) -> None:
        """Begin again."""
        self.files.clear()
        self.splits.clear()
        self.empty_documents = 0

    def notes(self) -> list[str]:
        """A line on each sort of thing that was skipped."""
        splits = f"read the split train, skipped {', '.join(map(str, self.splits))}" if self.splits else ""
        empty = f"skipped {self.empty_documents} empty documents" if self.empty_documents else ""
        files = ""
        if self.files:
            example, remedy = _example(self.files)
            files = f"skipped {len(self.files)} files of other types, such as {example}"
            files += f" ({remedy})" if remedy else ""
        return [note for note in (files, splits, empty) if note]


def _example(files: Sequence[Path]) -> tuple[Path, str | None]:
    """One of the files, which something can be done about if that is true of any, and what."""
    remedies = ((file, remedy) for file in files if (remedy := look_alike(file)))
    return next(remedies, (files[0], None))


@dataclass(frozen=True)
class TextFiles:
    """The documents of one domain, in the order of the paths given and, inside a folder, of relative paths.

    A path is a file that `read_file` reads, a folder of them, or a dataset's folder made by `save_to_disk`. Iterating
    reads them; it can be done again.

    Raises (while iterating):
        StoreError: a path is missing or of another type, cannot be read or has no documents, or a line or row has no
            text.
    """

    paths: Sequence[Path]
    text_field: str = "text"
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def __iter__(self) -> Iterator[str]:
        units = self.units("")
        for given, pieces in groupby(units, key=lambda unit: unit.given):
            found = False
            for _, text in chain.from_iterable(unit.read() for unit in pieces):
                if text.strip():
                    found = True
                    yield text
                else:
                    self.skipped.empty_documents += 1
            if not found:
                raise no_documents(given)

    def units(self, domain: str) -> list[Unit]:
        """The paths as units of a domain; reads no text.

        Raises:
            StoreError: a path is missing, of another type, or holds nothing of ours.
        """
        self.skipped.clear()
        units = []
        for path in self.paths:
            skipped_before = len(self.skipped.files)
            found = self._units_of_path(path, domain)
            if not found:
                raise no_documents(str(path), self.skipped.files[skipped_before:])
            units += found
        return units

    def _units_of_path(self, path: Path, domain: str) -> list[Unit]:
        if is_saved_dataset(path):
            dataset, passed_over = open_saved_dataset(path)
            self.skipped.splits += [path / split for split in passed_over]
            return saved_dataset_units(domain, path, dataset, self.text_field)
        try:
            return file_units(domain, path, self._files(path), self.text_field)
        except OSError as error:
            raise unreadable(path, error) from None

    def _files(self, path: Path) -> Iterator[Path]:
        if path.is_dir():
            yield from self._files_of_folder(path)
        elif not path.exists():
            raise StoreError(str(path), "does not exist", f"check the path; {EXPECTED}")
        elif not is_readable(path):
            raise StoreError(str(path), f"is of an unknown type ({type_of(path)})", look_alike(path) or EXPECTED)
        else:
            yield path

    def _files_of_folder(self, folder: Path) -> Iterator[Path]:
        inside = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name in sorted(inside):
            if is_readable(inside[name]):
                yield inside[name]
            else:
                self.skipped.files.append(inside[name])


def no_documents(given: str, skipped: Sequence[Path] = ()) -> StoreError:
    """The error for a path or dataset in which there is no text."""
    if not skipped:
        return StoreError(given, "holds no documents", "give text, or leave it out")
    example, remedy = _example(skipped)
    problem = f"holds no documents, but {len(skipped)} files of other types, such as {example}"
    return StoreError(given, problem, remedy or EXPECTED)


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
