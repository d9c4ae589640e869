"""Tokenizing: units to parts, on all cores, doing only what is not done."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from doge_ds.data.preparing.encoding import EncoderPool
from doge_ds.data.preparing.parts import PART_BYTES, PartsFolder, UnitRecord
from doge_ds.data.reading.units import Unit
from doge_ds.errors import ConfigError

MOST_DOMAINS = 1000  # that the documents of one unit may name; a field of other things has as many values as documents


@dataclass(frozen=True)
class Shard:
    """Which units one of several processes does: every `count`-th one, from the `index`-th on; the largest first."""

    index: int
    count: int

    def of(self, units: Sequence[Unit]) -> list[Unit]:
        """Its units, in the order of the input. How units are dealt out changes nothing in what comes out."""
        by_size = sorted(range(len(units)), key=lambda number: (-units[number].size, number))
        return [units[number] for number in sorted(by_size[self.index :: self.count])]


def read_shard(text: str) -> Shard:
    """What stands after --shard, i/n with i from 0 to n - 1. Raises ConfigError."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError("--shard", f"{text!r} is no i/n with i from 0 to n - 1", "write it like 0/64, up to 63/64")
    return Shard(int(index), int(count))


@dataclass(eq=False)
class _Reading:
    """A unit that is being read: what its record will say."""

    unit: Unit
    key: str
    parts: list[int] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    empty_documents: int = 0

    def record(self) -> UnitRecord:
        return UnitRecord(
            name=self.unit.name,
            given=self.unit.given,
            parts=self.parts,
            domains=self.domains,
            empty_documents=self.empty_documents,
        )


_Place = tuple[_Reading, int, int]
"""Of a document: its unit, its part, and the place of its domain in the unit's."""


def tokenize(units: Sequence[Unit], folder: PartsFolder, pool: EncoderPool) -> None:
    """Make every unit whole in the folder; progress goes to stderr.

    Raises:
        StoreError: a text cannot be read, or is longer than 4 GiB.
        TokenizerError: see `EncoderPool.encode`.
        OSError: a part cannot be written.
    """
    missing = [unit for unit in units if folder.record(folder.key(unit)) is None]
    if not missing:
        return
    if len(missing) < len(units):
        tqdm.write(f"{len(units) - len(missing)} of {len(units)} pieces of the input are done already", file=sys.stderr)
    with progress_bar("tokenizing") as progress:
        _write(pool.encode(_documents(missing, folder, progress)), folder, progress)


def progress_bar(what: str, total: int | None = None) -> "tqdm[Any]":
    """A bar of bytes on stderr, with MB/s."""
    interval = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a job's log keeps every line
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, mininterval=interval, file=sys.stderr)


def _documents(units: Sequence[Unit], folder: PartsFolder, progress: "tqdm[Any]") -> Iterator[tuple[_Place, str]]:
    """All documents that are in no finished part. A part begins with the document in which PART_BYTES are full."""
    for number, unit in enumerate(units, start=1):
        progress.set_postfix_str(f"{number} of {len(units)}: {unit.name[-40:]}", refresh=False)
        reading = _Reading(unit, folder.key(unit))
        size, is_new, done = 0, False, False
        for domain, text in unit.read():
            if not text.strip():
                reading.empty_documents += 1
                continue
            if domain not in reading.domains:
                _refuse_more_domains(reading)
                reading.domains.append(domain)
            part = size // PART_BYTES
            size_before, size = size, size + len(text.encode())
            if reading.parts[-1:] != [part]:
                reading.parts.append(part)
                done = folder.has_part(reading.key, part)
                is_new |= not done
            if done:
                progress.update(size - size_before)
            else:
                yield (reading, part, reading.domains.index(domain)), text
        if not is_new:  # nothing of it comes to _write
            folder.finish(reading.key, reading.record())


def _refuse_more_domains(reading: _Reading) -> None:
    if len(reading.domains) == MOST_DOMAINS:
        problem = f"names more than {MOST_DOMAINS} domains"
        raise ConfigError(reading.unit.name, problem, "is domain_field the right one? `domains` can join several")


def _write(encoded: Iterator[tuple[_Place, str, Any]], folder: PartsFolder, progress: "tqdm[Any]") -> None:
    """Write parts as documents come, and a unit's record when those of the next come: then it is read to its end."""
    last: _Reading | None = None
    for (reading, part), documents in itertools.groupby(encoded, key=lambda found: found[0][:2]):
        if last is not None and last is not reading:
            folder.finish(last.key, last.record())
        with folder.new_part(reading.key, part) as writer:
            for (_, _, domain), text, ids in documents:
                progress.update(writer.append(domain, text, ids))
        last = reading
    if last is not None:
        folder.finish(last.key, last.record())
