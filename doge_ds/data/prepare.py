"""Raw text to a token store: every domain's documents tokenized on all cores and packed into STORE/<domain>/*.bin.

Two passes. The first reads everything: it finds what cannot be read before any work is lost, decides what is held out
and draws the text that a tokenizer is trained on. The second tokenizes. The store appears under its name when it is
whole, and its bytes depend on the documents and the options only, not on the number of worker processes.
"""

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tqdm import tqdm

from doge_ds.data.environment import environment_documents
from doge_ds.data.sources import HeldOut, Inputs, Survey, TextFiles, content_hash, held_out_rule, read_inputs
from doge_ds.data.tokenizer import (
    Encoder,
    EncoderPool,
    load_tokenizer,
    save_tokenizer,
    train_sentencepiece,
    vocabulary_size,
)
from doge_ds.data.tokens import (
    RESERVED_NAMES,
    SPLITS,
    DomainRecord,
    Manifest,
    Split,
    SplitRecord,
    TokenizerRecord,
    TokenStore,
    folder_sha256,
    is_domain_name,
)
from doge_ds.errors import ConfigError, StoreError

# Bytes of text that a tokenizer is trained on, drawn evenly from the domains: so many for each token, and at most.
SAMPLE_BYTES_A_TOKEN, SAMPLE_BYTES = 800, 20_000_000

_EXAMPLES = """examples:
  doge-ds prepare --input books=books/ code=code.jsonl.gz notes=notes/ --output store --tokenizer gpt2
  doge-ds prepare --input wiki=part1.parquet wiki=part2.parquet news=news/ --output store --train_tokenizer 32000
  doge-ds prepare --input web=web.jsonl.zst chat=saved_dataset/ --output store --tokenizer gpt2 --text_field meta.text
  doge-ds prepare --input environment --output runs/demo/store --train_tokenizer 6000

A path is a .txt file (one document), a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file (one a line or row), a folder of
such files, read recursively, or a dataset's folder made by Hugging Face's save_to_disk: of several splits the one named
train is read, and PATH/SPLIT names another. `environment` stands for six domains made from what this Python
installation has on disk, without a download. A tokenizer is trained (sentencepiece, unigram, lossless) on 800 bytes of
text for each of its tokens, at most 20 MB, drawn evenly from the domains. Which documents are held out depends on their
content alone. An existing STORE is never touched."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds prepare`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--input", nargs="+", action="extend", required=True, metavar="DOMAIN=PATH",
        help="a domain and a file or folder of text (see below); or the one word environment",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="STORE", help="the folder to make")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", metavar="NAME_OR_FOLDER", help="a Hugging Face tokenizer")
    which.add_argument("--train_tokenizer", type=int, metavar="VOCABULARY", help="train one of that many tokens")
    parser.add_argument(
        "--text_field", default="text", help="field or column of the text; a.b: b inside a (default: text)"
    )
    parser.add_argument(
        "--valid_fraction", type=float, default=0.05, help="share of the documents that is held out (default: 0.05)"
    )
    parser.add_argument("--workers", type=int, help="processes that tokenize (default: one a core)")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds prepare`: build the store and print what is in it."""
    store = prepare(
        read_inputs(arguments.input),
        arguments.output,
        tokenizer=arguments.tokenizer,
        train_tokenizer=arguments.train_tokenizer,
        valid_fraction=arguments.valid_fraction,
        workers=arguments.workers,
        text_field=arguments.text_field,
    )
    print(store_table(store))
    return 0


def prepare(
    inputs: Inputs,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    train_tokenizer: int | None = None,
    valid_fraction: float = 0.05,
    workers: int | None = None,
    text_field: str = "text",
) -> TokenStore:
    """Build a token store; progress goes to stderr.

    Args:
        inputs: files, folders and saved datasets of each domain, or "environment".
        output: the store's folder, which must not exist.
        tokenizer, train_tokenizer: a name or folder, or the vocabulary size of one to train: one of the two.
        valid_fraction: share of the documents that is held out, between 0 and 1.
        workers: processes that tokenize; None: one a core. With more than one, a script that calls this needs the
            usual `if __name__ == "__main__":`, because processes are spawned.

    Raises:
        StoreError: the text cannot be read or is too little, or the store cannot be written or is there already.
        TokenizerError: the tokenizer cannot be loaded or trained.
        ConfigError: an option is out of range.
    """
    output = Path(output)
    workers = _check_options(inputs, output, tokenizer, train_tokenizer, valid_fraction, workers)
    if tokenizer is not None:
        load_tokenizer(tokenizer)  # before anything is read: a misspelt name should be told at once
    documents, sources = _documents(inputs, text_field)
    threshold = round(valid_fraction * 2**64)
    sample_bytes = min(SAMPLE_BYTES, SAMPLE_BYTES_A_TOKEN * (train_tokenizer or 0))
    surveys = _survey(documents, threshold, sample_bytes)
    held_out = held_out_rule(surveys, threshold)
    built_from = {
        "inputs": sources,
        "text_field": text_field,
        "valid_fraction": valid_fraction,
        "tokenizer": str(tokenizer) if tokenizer is not None else {"trained": train_tokenizer, "bytes": sample_bytes},
        "versions": {
            name: importlib.metadata.version(name) for name in ("sentencepiece", "tokenizers", "transformers")
        },
    }
    with _new_folder(output) as folder:
        record, encoder = _make_tokenizer(tokenizer, train_tokenizer, surveys, held_out, folder / "tokenizer")
        dtype: Literal["uint16", "uint32"] = "uint16" if record.vocabulary_size <= 1 << 16 else "uint32"
        with EncoderPool(encoder, dtype, workers) as pool:
            splits = _tokenize(documents, surveys, held_out, pool, folder)
        manifest = Manifest(
            version=1,
            dtype=dtype,
            tokenizer=record,
            domains={
                name: DomainRecord(train=found["train"], valid=found["valid"], sources=sources[name])
                for name, found in splits.items()
            },
            built_from=built_from,
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return TokenStore(output)


def _check_options(
    inputs: Inputs,
    output: Path,
    tokenizer: str | Path | None,
    train_tokenizer: int | None,
    valid_fraction: float,
    workers: int | None,
) -> int:
    """Refuse what can be refused before anything is read. The number of workers."""
    if os.path.lexists(output):
        raise StoreError(str(output), "exists, and is not touched", "choose another --output, or remove it yourself")
    if (tokenizer is None) == (train_tokenizer is None):
        raise ConfigError("tokenizer", "either none or two are given", "give --tokenizer or --train_tokenizer")
    if train_tokenizer is not None and train_tokenizer < 1:
        raise ConfigError("--train_tokenizer", f"{train_tokenizer} is no number of tokens", "take 1000 or more")
    if not 0 < valid_fraction < 1:
        raise ConfigError("--valid_fraction", f"{valid_fraction} is no share", "give a number between 0 and 1")
    if workers is not None and workers < 1:
        raise ConfigError("--workers", f"{workers} is too few", "give 1 or more, or leave it out for one a core")
    for name in () if inputs == "environment" else inputs:
        if not is_domain_name(name):
            raise ConfigError(
                "--input",
                f"{name!r} cannot name a domain",
                f"use letters, digits and _ . + -, not a dot or dash first, and not {' or '.join(RESERVED_NAMES)}",
            )
    return workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _documents(inputs: Inputs, text_field: str) -> tuple[dict[str, Iterable[str]], dict[str, list[str]]]:
    """Each domain's documents, which can be read twice, and what they are called in the manifest."""
    if inputs == "environment":
        tqdm.write("collecting text of this installation", file=sys.stderr)
        texts = environment_documents()
        return dict(texts), {name: ["environment"] for name in texts}
    documents: dict[str, Iterable[str]] = {
        name: TextFiles([Path(path) for path in paths], text_field) for name, paths in inputs.items()
    }
    return documents, {name: [str(path) for path in paths] for name, paths in inputs.items()}


def _survey(documents: Mapping[str, Iterable[str]], threshold: int, sample_bytes: int) -> dict[str, Survey]:
    surveys = {}
    with _progress("reading") as progress:
        for name, texts in documents.items():
            found = surveys[name] = Survey(threshold, sample_bytes // len(documents))
            for text in texts:
                progress.update(found.add(text))
            if isinstance(texts, TextFiles):
                for note in texts.skipped.notes():
                    tqdm.write(f"{name}: {note}", file=sys.stderr)
    return surveys


def _progress(what: str, total: int | None = None) -> "tqdm[Any]":
    interval = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a job's log keeps every line
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, mininterval=interval, file=sys.stderr)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, beside `output`, that gets its name when the block ends well and vanishes otherwise."""
    folder = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        folder.mkdir(parents=True)
        yield folder
        if os.path.lexists(output):  # rename would replace an empty folder
            raise StoreError(str(output), "came into being meanwhile, and is not touched", "choose another --output")
        folder.rename(output)
    except OSError as error:
        raise StoreError(
            str(output), f"cannot be written ({error.strerror or error})", "check the path, its rights and the space"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_tokenizer(
    name: str | Path | None, vocabulary: int | None, surveys: Mapping[str, Survey], held_out: HeldOut, folder: Path
) -> tuple[TokenizerRecord, Encoder]:
    """Train or load the tokenizer and save it into the store. What is saved there is what makes the tokens."""
    if vocabulary is not None:
        sample = [text for survey in surveys.values() for text in survey.sample(held_out)]
        size = sum(map(len, sample)) / 1e6
        tqdm.write(f"training a tokenizer of {vocabulary} tokens on {size:.1f} million characters", file=sys.stderr)
        made = train_sentencepiece(sample, vocabulary, folder)
    else:
        save_tokenizer(load_tokenizer(str(name)), folder)
        made = load_tokenizer(folder)
    record = TokenizerRecord(
        name=str(name) if vocabulary is None else f"sentencepiece-unigram-{vocabulary}",
        vocabulary_size=vocabulary_size(made),
        end_of_text=made.eos_token,
        end_of_text_id=made.eos_token_id,
        sha256=folder_sha256(folder),
    )
    return record, Encoder(made)


class _File:
    """One `.bin` file being written, and its counts."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._tokens = self._documents = self._bytes = 0

    def append(self, text: str, ids: np.ndarray) -> None:
        raw = ids.astype(ids.dtype.newbyteorder("<"), copy=False).tobytes()
        self._stream.write(raw)
        self._digest.update(raw)
        self._tokens += len(ids)
        self._documents += 1
        self._bytes += len(text.encode())

    def record(self) -> SplitRecord:
        return SplitRecord(
            tokens=self._tokens, documents=self._documents, bytes=self._bytes, sha256=self._digest.hexdigest()
        )


def _tokenize(
    documents: Mapping[str, Iterable[str]],
    surveys: Mapping[str, Survey],
    held_out: HeldOut,
    pool: EncoderPool,
    folder: Path,
) -> dict[str, dict[Split, SplitRecord]]:
    """Write every domain's files; their records.

    Raises:
        StoreError: the text has changed since it was surveyed, or a domain has nothing on one side.
    """
    records = {}
    with _progress("tokenizing", sum(survey.bytes for survey in surveys.values())) as progress:
        started, tokens, done = time.monotonic(), 0, 0
        for name, texts in documents.items():
            (folder / name).mkdir()
            with ExitStack() as stack:
                files = {
                    split: _File(stack.enter_context((folder / name / f"{split}.bin").open("wb"))) for split in SPLITS
                }
                for text, ids in pool.encode(texts):
                    files["valid" if held_out.holds(content_hash(text)) else "train"].append(text, ids)
                    tokens, done = tokens + len(ids), done + 1
                    rate = tokens / max(time.monotonic() - started, 1e-3)
                    progress.set_postfix_str(f"{done} documents, {rate:,.0f} tokens/s", refresh=False)
                    progress.update(len(text.encode()))
            records[name] = {split: file.record() for split, file in files.items()}
            _check_domain(name, records[name], surveys[name])
    return records


def _check_domain(name: str, splits: Mapping[Split, SplitRecord], survey: Survey) -> None:
    train, valid = splits["train"], splits["valid"]
    if (train.documents + valid.documents, train.bytes + valid.bytes) != (survey.documents, survey.bytes):
        raise StoreError(f"domain {name}", "its text changed while it was being read", "start again when it is at rest")
    for split, record in splits.items():
        if not record.documents:  # another domain needs its only one on the other side
            raise StoreError(f"domain {name}", f"has no {split} document", "give it more documents")


def store_table(store: TokenStore) -> str:
    """What is in a store, a line a domain; MB are millions of bytes of text."""
    domains = store.manifest.domains
    width = max(len("domain"), *map(len, domains))
    lines = [f"{'domain':<{width}}  {'documents':>10}  {'tokens':>14}  {'MB':>9}  {'held-out tokens':>15}  bytes/token"]
    for name, record in domains.items():
        sides = (record.train, record.valid)
        documents, tokens, size = (
            sum(getattr(side, key) for side in sides) for key in ("documents", "tokens", "bytes")
        )
        lines.append(
            f"{name:<{width}}  {documents:>10,}  {tokens:>14,}  {size / 1e6:>9,.2f}"
            f"  {record.valid.tokens:>15,}  {size / tokens:>11.2f}"
        )
    return "\n".join(lines)
