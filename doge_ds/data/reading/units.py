"""Units: the pieces in which input is read, each from its beginning by one process, none needing another.

How input is cut into units depends on the input alone, so whoever reads which unit, the whole is the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_ds.data.reading.columns import read_saved_dataset
from doge_ds.data.reading.readers import read_file

# Small files of one folder make up a unit together: a million .txt files are not a million units.
UNIT_BYTES = 1 << 26
UNIT_ROWS = 100_000  # of a saved dataset

Document = tuple[str, str]
"""Domain and text."""


@dataclass(frozen=True)
class Unit:
    """A piece of the input.

    Attributes:
        name: what messages call it.
        given: the path or dataset that the user named, of which it is a piece.
        identity: JSON that is another one when the piece was changed, or belongs to another domain.
        size: bytes on disk; 0 where that is not known.
        read: its documents in their order, empty ones too; can be called again.
    """

    name: str
    given: str
    identity: list[Any]
    size: int
    read: Callable[[], Iterator[Document]]


def file_units(domain: str, given: Path, files: Iterable[Path], text_field: str) -> list[Unit]:
    """Units of files in their order: neighbours together, as long as they have not UNIT_BYTES.

    Raises:
        OSError: a file has vanished.
    """
    units: list[Unit] = []
    group: list[Path] = []
    size = 0
    for file in files:
        if group and size + file.stat().st_size > UNIT_BYTES:
            units.append(_of_files(domain, given, group, text_field))
            group, size = [], 0
        group.append(file)
        size += file.stat().st_size
    return [*units, _of_files(domain, given, group, text_field)] if group else units


def _of_files(domain: str, given: Path, files: Sequence[Path], text_field: str) -> Unit:
    def read() -> Iterator[Document]:
        for file in files:
            for text in read_file(file, text_field):
                yield domain, text

    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    identity = ["files", domain, text_field, *map(state_of_file, files)]
    return Unit(name, str(given), identity, sum(file.stat().st_size for file in files), read)


def saved_dataset_units(domain: str, folder: Path, dataset: Any, text_field: str) -> list[Unit]:
    """Units of a dataset that `columns.open_saved_dataset` opened: UNIT_ROWS rows each."""
    state = [state_of_file(file) for file in sorted(folder.rglob("*")) if file.is_file()]
    size = sum(file.stat().st_size for file in folder.rglob("*.arrow"))

    def of_rows(first: int, end: int) -> Unit:
        def read() -> Iterator[Document]:
            for text in read_saved_dataset(dataset.select(range(first, end)), folder, text_field, first):
                yield domain, text

        identity = ["rows", domain, text_field, first, end, *state]
        return Unit(
            f"{folder}, rows {first + 1} to {end}", str(folder), identity, size * (end - first) // len(dataset), read
        )

    return [of_rows(first, min(first + UNIT_ROWS, len(dataset))) for first in range(0, len(dataset), UNIT_ROWS)]


def state_of_file(file: Path) -> list[Any]:
    """Path, size and time of change: what tells whether a file is still the one that was read."""
    found = file.stat()
    return [str(file), found.st_size, found.st_mtime_ns]
