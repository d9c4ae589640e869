"""Verifying a token store: everything is read again, and whatever is not as the manifest says is named."""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from doge_ds.data.prepare import store_table
from doge_ds.data.preparing.tokenizing import progress_bar
from doge_ds.data.tokens import SPLITS, Manifest, SplitRecord, TokenStore, check_file, check_tokenizer, read_manifest
from doge_ds.errors import StoreError, TokenizerError

_BLOCK = 1 << 24  # bytes read at a time

_EPILOG = """\
Reads every file of the store and compares it with the manifest: size, sha256, token ids within the vocabulary, an
end-of-text token after each document. Files that were exchanged are told apart from damaged ones. Prints what is in the
store when all is well, else a line for each fault, and ends with status 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds verify`."""
    parser.epilog = _EPILOG
    parser.add_argument("store", type=Path, metavar="STORE", help="a folder made by doge-ds prepare")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds verify`."""
    faults = list(find_faults(arguments.store))
    if faults:
        for fault in faults[1:]:
            print(f"error: {fault}", file=sys.stderr)
        raise faults[0]
    print(store_table(TokenStore(arguments.store)))
    return 0


def find_faults(path: Path) -> Iterator[StoreError | TokenizerError]:
    """Every fault of a store, named; progress goes to stderr.

    Raises:
        StoreError: there is no manifest to compare with.
    """
    manifest = read_manifest(path)
    try:
        check_tokenizer(path, manifest)
    except TokenizerError as fault:
        yield fault
    yield from _strangers(path, manifest)
    files = [(name, split, getattr(record, split)) for name, record in manifest.domains.items() for split in SPLITS]
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    owners = {record.sha256: f"{name}/{split}.bin" for name, split, record in files}
    with progress_bar("verifying", sum(record.tokens for _, _, record in files) * dtype.itemsize) as progress:
        for name, split, record in files:
            file = path / name / f"{split}.bin"
            try:
                check_file(path, name, split, record.tokens, dtype)
                _check_content(file, record, manifest, owners, progress)
            except StoreError as fault:
                yield fault
            except OSError as error:
                yield StoreError(str(file), f"cannot be read ({error.strerror})", "check the disk and the rights")


def _strangers(path: Path, manifest: Manifest) -> Iterator[StoreError]:
    """Folders that the manifest does not name: perhaps it was edited by hand."""
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and folder.name not in {*manifest.domains, "tokenizer"}:
            problem = "stands in the store, but the manifest has no such domain"
            yield StoreError(str(folder), problem, "remove it, or put the manifest back that names it")


def _check_content(
    file: Path, record: SplitRecord, manifest: Manifest, owners: dict[str, str], progress: "tqdm[Any]"
) -> None:
    """Read one file. Raises StoreError for the first thing that is wrong with it."""
    digest = hashlib.sha256()
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    documents, largest, last = 0, 0, manifest.tokenizer.end_of_text_id
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            tokens = np.frombuffer(block, dtype=dtype)
            documents += int(np.count_nonzero(tokens == manifest.tokenizer.end_of_text_id))
            largest, last = max(largest, int(tokens.max())), int(tokens[-1])
            progress.update(len(block))
    again = "put the original back, or build the store again"
    if digest.hexdigest() != record.sha256:
        owner = owners.get(digest.hexdigest())
        raise StoreError(
            str(file), f"holds what {owner} should hold" if owner else "was changed: its sha256 differs", again
        )
    # Below here the file is as it was written, so that it is the manifest that was changed, or a program at fault.
    if largest >= manifest.tokenizer.vocabulary_size:
        problem = f"has the token {largest}, and the tokenizer has {manifest.tokenizer.vocabulary_size}"
        raise StoreError(str(file), problem, "build the store again")
    if documents != record.documents or last != manifest.tokenizer.end_of_text_id:
        problem = f"has {documents} documents where the manifest says {record.documents}"
        raise StoreError(str(file), problem, "put the manifest back, or build the store again")
