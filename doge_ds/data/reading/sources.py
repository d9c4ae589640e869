"""Documents of files, folders and saved datasets, and the hash of their content by which all is decided."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Literal

from doge_ds.data.reading.columns import is_saved_dataset, open_saved_dataset
from doge_ds.data.reading.readers import EXPECTED, is_readable, look_alike, type_of, unreadable
from doge_ds.data.reading.units import Unit, file_units, saved_dataset_units
from doge_ds.errors import ConfigError, StoreError

Inputs = Mapping[str, Sequence[str | Path]] | Literal["environment"]


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
        try:
            if is_saved_dataset(path):
                dataset, passed_over = open_saved_dataset(path)
                self.skipped.splits += [path / split for split in passed_over]
                return saved_dataset_units(domain, path, dataset, self.text_field)
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
        inside = {path.relative_to(folder).as_posix(): path for path in _files_below(folder)}
        for name in sorted(inside):
            if is_readable(inside[name]):
                yield inside[name]
            else:
                self.skipped.files.append(inside[name])


def _files_below(folder: Path) -> Iterator[Path]:
    """Also through links to folders, each folder once. Raises OSError where one cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (path for path in (Path(root) / name for name in names) if path.is_file())


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
