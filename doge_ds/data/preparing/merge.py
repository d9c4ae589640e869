"""Merging: all parts of a store into its files, every document on the side that `fates.py` decided."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from doge_ds.data.preparing.fates import COPY, TRAIN, VALID, Fates
from doge_ds.data.preparing.parts import Part
from doge_ds.data.tokens import SPLITS, Split, SplitRecord
from doge_ds.errors import StoreError

_SIDES: dict[Split, int] = {"train": TRAIN, "valid": VALID}


class _File:
    """One `.bin` file and its counts; opened anew for each part, because so many files must not be open at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._tokens = self._documents = self._bytes = 0
        path.touch()

    def append(self, tokens: npt.NDArray[Any], documents: int, size: int) -> None:
        raw = tokens.tobytes()
        with self._path.open("ab") as stream:
            stream.write(raw)
        self._digest.update(raw)
        self._tokens += len(tokens)
        self._documents += documents
        self._bytes += size

    def record(self) -> SplitRecord:
        return SplitRecord(
            tokens=self._tokens, documents=self._documents, bytes=self._bytes, sha256=self._digest.hexdigest()
        )


def merge_parts(
    parts: Sequence[Part], fates: Fates, domains: Sequence[str], dtype: str, folder: Path, progress: "tqdm[Any]"
) -> dict[str, dict[Split, SplitRecord]]:
    """Write FOLDER/<domain>/{train,valid}.bin; their records. One part is in memory at a time.

    Args:
        parts: in the order of the input; documents keep it.
        progress: gets the bytes of tokens that are read.

    Raises:
        StoreError: a domain has no document, or no token, on one side.
    """
    files: dict[tuple[str, int], _File] = {}
    for name in domains:
        (folder / name).mkdir()
        for split, side in _SIDES.items():
            files[name, side] = _File(folder / name / f"{split}.bin")
    place = 0
    for part in parts:
        index = part.index()
        sides = fates.values[place : place + len(index)]
        place += len(index)
        tokens = np.fromfile(part.tokens_file, dtype=np.dtype(dtype).newbyteorder("<"))
        for number, side in sorted({*zip(index["domain"].tolist(), sides.tolist(), strict=True)}):
            if side != COPY:
                chosen = (index["domain"] == number) & (sides == side)
                of_chosen = tokens if chosen.all() else tokens[np.repeat(chosen, index["tokens"])]
                size = int(index["bytes"][chosen].sum(dtype=np.int64))
                files[part.domains[number], side].append(of_chosen, int(chosen.sum()), size)
        progress.update(tokens.nbytes)
    records: dict[str, dict[Split, SplitRecord]] = {
        name: {split: files[name, _SIDES[split]].record() for split in SPLITS} for name in domains
    }
    _refuse_empty_files(records)
    return records


def _refuse_empty_files(records: Mapping[str, Mapping[Split, SplitRecord]]) -> None:
    for name, splits in records.items():
        for split, record in splits.items():
            if not record.documents:  # another domain needs its only one on the other side
                raise StoreError(f"domain {name}", f"has no {split} document", "give it more documents")
            if record.tokens == record.documents:
                problem = f"yields no token but end-of-text ones from {record.bytes} bytes of {split} text"
                raise StoreError(f"domain {name}", problem, "take a tokenizer that knows its letters")
