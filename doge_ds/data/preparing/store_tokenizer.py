"""The tokenizer of a store that is being prepared: loaded or trained once, and kept among the parts."""

import hashlib
import json
import shutil
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from doge_ds.data.preparing.encoding import Encoder
from doge_ds.data.preparing.fates import HeldOutRule
from doge_ds.data.preparing.samples import Sample, draw_samples
from doge_ds.data.preparing.tokenizer_training import train_sentencepiece
from doge_ds.data.reading.inputs import Listing
from doge_ds.data.tokenizer import load_tokenizer, save_tokenizer, vocabulary_size
from doge_ds.data.tokens import TokenizerRecord, folder_sha256
from doge_ds.errors import ConfigError

# Bytes of text that a tokenizer is trained on, drawn evenly from the domains: so many for each token, and at most.
SAMPLE_BYTES_A_TOKEN, SAMPLE_BYTES = 800, 20_000_000


@dataclass(frozen=True)
class TokenizerChoice:
    """A name, folder or file, or the vocabulary of one to train on the text that is not held out."""

    load: str | Path | None
    train: int | None
    held_out: HeldOutRule

    def check(self) -> None:
        """Raises ConfigError where none or both are given, or one is out of range."""
        if (self.load is None) == (self.train is None):
            raise ConfigError("tokenizer", "either none or two are given", "give --tokenizer or --train_tokenizer")
        if self.train is not None and self.train < 1:
            raise ConfigError("--train_tokenizer", f"{self.train} is no number of tokens", "take 1000 or more")
        self.held_out.check()
        if self.train is not None and self.held_out.fraction is None:
            problem = "needs to know what is held out before the text is read"
            remedy = "use --valid_fraction, or train one first with `doge-ds tokenizer`"
            raise ConfigError("--train_tokenizer", problem, remedy)

    @property
    def sample_bytes(self) -> int:
        return min(SAMPLE_BYTES, SAMPLE_BYTES_A_TOKEN * (self.train or 0))

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"tokenizer": str(self.load) if self.load else {"trained": self.train, "bytes": self.sample_bytes}}


def make_tokenizer(choice: TokenizerChoice, listing: Listing, work: Path) -> tuple[TokenizerRecord, Path, Encoder]:
    """Load or train the tokenizer, and keep it in a folder of WORK, from which it is loaded: that makes the tokens.

    Raises:
        TokenizerError: it cannot be loaded or trained.
        StoreError: the text cannot be read.
    """
    folder = _trained(choice, listing, work) if choice.train is not None else _loaded(str(choice.load), work)
    made = load_tokenizer(folder)
    record = TokenizerRecord(
        name=str(choice.load) if choice.train is None else f"sentencepiece-unigram-{choice.train}",
        vocabulary_size=vocabulary_size(made),
        end_of_text=made.eos_token,
        end_of_text_id=made.eos_token_id,
        sha256=folder_sha256(folder),
    )
    return record, folder, Encoder(made)


def _loaded(name: str, work: Path) -> Path:
    tokenizer = load_tokenizer(name)
    return _new_folder(work, lambda folder: save_tokenizer(tokenizer, folder), named_by=folder_sha256)


def _trained(choice: TokenizerChoice, listing: Listing, work: Path) -> Path:
    """The same text was perhaps sampled and learned before a kill."""
    facts = json.dumps(
        [choice.describe(), choice.held_out.describe(), [unit.identity for unit in listing.units]], sort_keys=True
    )
    name = hashlib.sha256(facts.encode()).hexdigest()
    there = work / f"tokenizer.{name[:16]}"
    if there.is_dir():
        return there
    sample = _draw_sample(listing, choice)
    tqdm.write(
        f"training a tokenizer of {choice.train} tokens on {sum(map(len, sample)) / 1e6:.1f} million characters",
        file=sys.stderr,
    )
    return _new_folder(
        work, lambda folder: train_sentencepiece(sample, choice.train or 0, folder), named_by=lambda _: name
    )


def _new_folder(work: Path, fill: Callable[[Path], object], named_by: Callable[[Path], str]) -> Path:
    """A folder that appears when it is whole. Another process may have made the same one meanwhile."""
    temporary = work / f"tokenizer.{uuid.uuid4().hex}.partial"
    try:
        fill(temporary)
        folder = work / f"tokenizer.{named_by(temporary)[:16]}"
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        return folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _draw_sample(listing: Listing, choice: TokenizerChoice) -> list[str]:
    """The text that a tokenizer is trained on: evenly from the domains, nothing held out among it."""
    threshold = round((choice.held_out.fraction or 0) * 2**64)
    # Where domains turn up only in the text, each may be the only one.
    most = choice.sample_bytes // (1 if listing.undeclared else len(listing.sources))
    samples: dict[str, Sample] = defaultdict(lambda: Sample(0, threshold, most))
    draw_samples(listing.units, samples)
    # Where chance would hold out nothing of a domain, its document with the smallest hash is.
    held_out = frozenset(sample.smallest for sample in samples.values() if sample.smallest >= threshold)
    share = choice.sample_bytes // max(1, len(samples))
    return [text for sample in samples.values() for text in _first_bytes(sample.texts(held_out), share)]


def _first_bytes(texts: Sequence[str], size: int) -> Iterator[str]:
    """The first texts, until there are so many bytes."""
    for text in texts:
        if size <= 0:
            return
        yield text
        size -= len(text.encode())
