"""Fates: which documents of a store are trained on, held out, or dropped as copies. Decided by hashes of their content.

So the decision depends neither on who read a document nor on where it stands: equal documents have one side, in all
domains. The records of all documents are parted by their hashes into buckets on disk that fit into memory one by one:
at most about 400 MB, and 22 bytes of disk a document, whatever the number of documents.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_ds.data.preparing.parts import INDEX, Part
from doge_ds.errors import ConfigError, StoreError

BUCKET_DOCUMENTS = 1 << 22  # in one bucket, about
_BITS = 12  # of a hash, by which documents and tokens are counted to find where the held-out ones end

TRAIN, VALID, COPY = range(3)

_RECORD = np.dtype([("hash", "<u8"), ("place", "<u8"), ("tokens", "<u4"), ("domain", "<u2")])
Records = npt.NDArray[Any]


@dataclass(frozen=True)
class HeldOutRule:
    """How much of every domain is held out: one of the three. Those documents whose hashes are smallest."""

    fraction: float | None = None
    documents: int | None = None
    tokens: int | None = None

    def check(self) -> None:
        """Raises ConfigError where none or several are given, or one is out of range."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            problem = f"{len(given)} of three are given"
            raise ConfigError(
                "the held-out split", problem, "give one of --valid_fraction, --valid_documents, --valid_tokens"
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ConfigError("--valid_fraction", f"{self.fraction} is no share", "give a number between 0 and 1")
        for name in ("documents", "tokens"):
            if name in given and given[name] < 1:
                raise ConfigError(f"--valid_{name}", f"{given[name]} is too few", "give 1 or more")

    def describe(self) -> dict[str, float]:
        """For the manifest."""
        return {f"valid_{name}": value for name, value in vars(self).items() if value is not None}


@dataclass
class DomainCopies:
    """Documents of a domain that are equal to an earlier one, of the same domain and of others only."""

    within: int = 0
    across: int = 0


@dataclass
class Fates:
    """What becomes of every document: TRAIN, VALID or COPY, in the order of the parts.

    Attributes:
        copies: for each domain.
    """

    values: npt.NDArray[np.uint8]
    copies: list[DomainCopies]


@dataclass
class _Counts:
    """What the first pass finds of every domain, but for `documents` over those that are kept: [D] or [D, 2^_BITS]."""

    documents: npt.NDArray[np.int64]
    smallest: npt.NDArray[np.uint64]
    largest: npt.NDArray[np.uint64]
    amounts: npt.NDArray[np.int64]
    copies: list[DomainCopies] = field(default_factory=list)


def decide_fates(
    parts: Sequence[Part], domains: Sequence[str], rule: HeldOutRule, deduplicate: bool, folder: Path
) -> Fates:
    """Decide for all documents.

    A document that is held out in one domain is held out in all of them. Of equal documents the first in the order of
    the parts is kept where `deduplicate`.

    Args:
        parts: in the order of the input.
        domains: of the store.
        folder: new; for the buckets, which are removed again.

    Raises:
        StoreError: a domain has no two different documents, or the rule leaves nothing to train on.
    """
    folder.mkdir()
    try:
        buckets = _Buckets(parts, domains, folder)
        fates = np.memmap(folder / "fates", dtype=np.uint8, mode="w+", shape=(max(1, buckets.documents),))
        counts = _count(buckets, len(domains), rule, deduplicate, fates)
        limits = _limits(buckets, domains, rule, counts, fates)
        for records in buckets:
            _hold_out(records, limits, fates)
        return Fates(np.array(fates[: buckets.documents]), counts.copies)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Buckets:
    """The records of all documents, by the first bits of their hashes; iterated sorted by hash and place."""

    def __init__(self, parts: Sequence[Part], domains: Sequence[str], folder: Path) -> None:
        number = {name: place for place, name in enumerate(domains)}
        self.documents = sum(part.index_file.stat().st_size for part in parts) // INDEX.itemsize
        self.bits = min(_BITS, (self.documents // BUCKET_DOCUMENTS).bit_length())
        self._files = [folder / f"bucket{bucket}" for bucket in range(1 << self.bits)]
        place = 0
        for part in parts:
            index = part.index()
            records = np.empty(len(index), dtype=_RECORD)
            records["hash"], records["tokens"] = index["hash"], index["tokens"]
            records["place"] = np.arange(place, place + len(index))
            records["domain"] = np.array([number[name] for name in part.domains], dtype=np.uint16)[index["domain"]]
            place += len(index)
            self._append(records)

    def _append(self, records: Records) -> None:
        if not self.bits:
            with self._files[0].open("ab") as stream:
                stream.write(records.tobytes())
            return
        which = records["hash"] >> np.uint64(64 - self.bits)
        for bucket in np.unique(which).tolist():
            with self._files[bucket].open("ab") as stream:
                stream.write(records[which == bucket].tobytes())

    def __iter__(self) -> Iterator[Records]:
        return (self._read(file) for file in self._files if file.exists())

    def of_bits(self, prefix: int) -> Records:
        """The records whose hashes begin with these _BITS bits."""
        file = self._files[prefix >> (_BITS - self.bits)]
        records = self._read(file) if file.exists() else np.empty(0, dtype=_RECORD)
        chosen: Records = records[_prefixes(records) == prefix]
        return chosen

    def _read(self, file: Path) -> Records:
        records = np.fromfile(file, dtype=_RECORD)
        return records[np.argsort(records["hash"], kind="stable")]  # places were written in their order


def _prefixes(records: Records) -> npt.NDArray[np.int64]:
    return (records["hash"] >> np.uint64(64 - _BITS)).astype(np.int64)


def _first_of_hash(records: Records) -> npt.NDArray[np.bool_]:
    """Which records are the first with their hash."""
    first = np.ones(len(records), dtype=bool)
    first[1:] = records["hash"][1:] != records["hash"][:-1]
    return first


def _count(
    buckets: _Buckets, domains: int, rule: HeldOutRule, deduplicate: bool, fates: npt.NDArray[np.uint8]
) -> _Counts:
    """Mark copies, and count what is kept."""
    counts = _Counts(
        np.zeros(domains, dtype=np.int64),
        np.full(domains, 2**64 - 1, dtype=np.uint64),
        np.zeros(domains, dtype=np.uint64),
        np.zeros((domains, 1 << _BITS), dtype=np.int64),
        [DomainCopies() for _ in range(domains)],
    )
    for records in buckets:
        first = _first_of_hash(records)
        counts.documents += np.bincount(records["domain"], minlength=domains)
        _count_copies(records, first, counts.copies)
        if deduplicate:
            fates[records["place"][~first]] = COPY
            records = records[first]
        cells = records["domain"].astype(np.int64) << _BITS | _prefixes(records)
        amounts = records["tokens"] if rule.tokens is not None else None
        counted = np.bincount(cells, weights=amounts, minlength=counts.amounts.size)
        counts.amounts += counted.reshape(counts.amounts.shape).astype(np.int64)
        np.minimum.at(counts.smallest, records["domain"], records["hash"])
        np.maximum.at(counts.largest, records["domain"], records["hash"])
    return counts


def _count_copies(records: Records, first: npt.NDArray[np.bool_], copies: Sequence[DomainCopies]) -> None:
    number = len(copies)
    documents = np.bincount(records["domain"], minlength=number)
    originals = np.bincount(records["domain"][first], minlength=number)
    # Of each hash, the first of every domain: sorted by domain inside of a hash.
    pairs = records[np.lexsort((records["domain"], records["hash"]))]
    new = _first_of_hash(pairs)
    new[1:] |= pairs["domain"][1:] != pairs["domain"][:-1]
    different = np.bincount(pairs["domain"][new], minlength=number)
    for found, all_of_it, distinct, original in zip(copies, documents, different, originals, strict=True):
        found.within += int(all_of_it - distinct)
        found.across += int(distinct - original)


def _limits(
    buckets: _Buckets, domains: Sequence[str], rule: HeldOutRule, counts: _Counts, fates: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint64]:
    """[D]: documents with a hash up to here are held out; at least one is, and at least one is not."""
    limits = np.empty(len(domains), dtype=np.uint64)
    for number, name in enumerate(domains):
        smallest, largest = counts.smallest[number], counts.largest[number]
        if smallest >= largest:
            raise _too_few_documents(name, int(counts.documents[number]), kept=bool(counts.amounts[number].any()))
        if rule.fraction is not None:
            limit = np.uint64(max(1, round(rule.fraction * 2**64)) - 1)
            limits[number] = min(max(limit, smallest), largest - np.uint64(1))
        else:
            limits[number] = _limit_of_amount(buckets, number, name, rule, counts, fates)
    return limits


def _limit_of_amount(
    buckets: _Buckets, number: int, name: str, rule: HeldOutRule, counts: _Counts, fates: npt.NDArray[np.uint8]
) -> np.uint64:
    """The hash up to which a domain's documents are as many, or have as many tokens, as asked for."""
    goal = rule.documents or rule.tokens or 0
    sums = np.cumsum(counts.amounts[number])
    prefix = int(np.searchsorted(sums, goal))
    if prefix < len(sums):
        records = buckets.of_bits(prefix)
        records = records[(records["domain"] == number) & (fates[records["place"]] != COPY)]
        amounts = records["tokens"].astype(np.int64) if rule.tokens is not None else np.ones(len(records), np.int64)
        before = int(sums[prefix - 1]) if prefix else 0
        limit = records["hash"][np.searchsorted(before + np.cumsum(amounts), goal)]
        if limit < counts.largest[number]:
            return np.uint64(limit)
    what = "documents" if rule.documents else "tokens"
    problem = f"has {int(sums[-1]):,} {what}, and --valid_{what} {goal:,} leaves none to train on"
    raise StoreError(f"domain {name}", problem, "hold out fewer, or give more text")


def _too_few_documents(name: str, documents: int, kept: bool) -> StoreError:
    if not documents:
        return StoreError(f"domain {name}", "has no document", "take it out of the recipe, or give it text")
    if not kept:
        return StoreError(f"domain {name}", "has only copies of other domains' documents", "leave the domain out")
    count = "one document" if documents == 1 else f"{documents} copies of one document"
    return StoreError(
        f"domain {name}",
        f"has only {count}, and the held-out split takes whole documents",
        "give it at least two different ones, for example by cutting the text at its chapters",
    )


def _hold_out(records: Records, limits: npt.NDArray[np.uint64], fates: npt.NDArray[np.uint8]) -> None:
    """Mark the documents that are held out in any domain that has them."""
    if not len(records):
        return
    starts = np.flatnonzero(_first_of_hash(records))
    sizes = np.diff(np.append(starts, len(records)))
    kept = fates[records["place"]] != COPY
    wanted = (records["hash"] <= limits[records["domain"]]) & kept
    held_out = np.repeat(np.logical_or.reduceat(wanted, starts), sizes) & kept
    fates[records["place"][held_out]] = VALID


def copies_note(domains: Sequence[str], fates: Fates, deduplicate: bool) -> str:
    """One line on the copies, "" where there are none."""
    found: Mapping[str, DomainCopies] = dict(zip(domains, fates.copies, strict=True))
    parts = [
        f"{name} {copies.within:,} of its own and {copies.across:,} of other domains'"
        for name, copies in found.items()
        if copies.within or copies.across
    ]
    if not parts:
        return ""
    what = "dropped" if deduplicate else "kept (--deduplicate drops them)"
    return f"documents equal to an earlier one, {what}: {', '.join(parts)}"
