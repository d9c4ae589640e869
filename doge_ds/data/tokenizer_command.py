"""`doge-ds tokenizer`: train a tokenizer on a mixture of domains, before there is a store."""

import argparse
import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from doge_ds.data.preparing.encoding import Encoder
from doge_ds.data.preparing.samples import Sample, draw_samples
from doge_ds.data.preparing.tokenizer_training import Kind, train_tokenizer
from doge_ds.data.reading.inputs import Listing, list_inputs
from doge_ds.data.reading.recipes import read_recipe
from doge_ds.data.reading.sources import read_inputs
from doge_ds.data.tokenizer import vocabulary_size
from doge_ds.errors import ConfigError, TokenizerError, nearest
from doge_ds.mixture import normalized, read_mixture

KINDS: tuple[Kind, ...] = ("unigram", "bpe", "byte_level_bpe")
_CHECKED_BYTES = 300_000  # of each domain, on which bytes a token are measured

_EXAMPLES = """examples:
  doge-ds tokenizer --input wiki=wiki.jsonl.gz code=code/ --output data/tokenizer --vocabulary 32000
  doge-ds tokenizer --input wiki=wiki.jsonl.gz code=code/ --output data/tokenizer --vocabulary 32000 \\
      --kind byte_level_bpe --weights wiki=0.8 code=0.2 --bytes 100000000 --seed 1
  doge-ds tokenizer ds_configs/data/wiki40b.json --output data/tokenizer --vocabulary 32000 --sentences 200000
  doge-ds prepare --input wiki=wiki.jsonl.gz code=code/ --output data/store --tokenizer data/tokenizer

Documents are drawn at random from each domain, as many bytes (or documents) as its weight in the mixture says, none
twice, and none that `doge-ds prepare` with the same --valid_fraction holds out. unigram and bpe are sentencepiece's,
with bytes for characters that are not in the vocabulary; byte_level_bpe is GPT-2's kind. All give back any text
exactly. The same text, options and seed give the same bytes. FOLDER is what `prepare --tokenizer` and transformers'
AutoTokenizer take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds tokenizer`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="a JSON file that says what to read")
    parser.add_argument(
        "--input", nargs="+", action="extend", metavar="DOMAIN=PATH", help="instead: as of `doge-ds prepare`"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--vocabulary", type=int, required=True, metavar="N", help="tokens")
    parser.add_argument("--kind", choices=KINDS, default="unigram", help="default: unigram")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--mixture", type=Path, metavar="FILE", help="a mixture.json: how much of each domain")
    which.add_argument(
        "--weights", nargs="+", metavar="DOMAIN=WEIGHT", help="the same, written here (default: all domains alike)"
    )
    parser.add_argument(
        "--bytes", type=int, default=20_000_000, help="of text to train on, altogether (default: 20,000,000)"
    )
    parser.add_argument("--sentences", type=int, metavar="DOCUMENTS", help="at most so many documents, altogether")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument(
        "--valid_fraction", type=float, default=0.05, help="leave out what prepare holds out with it (default: 0.05)"
    )
    parser.add_argument("--text_field", default="text", help="as of `doge-ds prepare`")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds tokenizer`: train, save, and print how well it suits each domain."""
    if (arguments.recipe is None) == (arguments.input is None):
        raise ConfigError("command line", "names no input, or two", "give RECIPE or --input, one of the two")
    _check_options(arguments)
    inputs = read_recipe(arguments.recipe) if arguments.recipe else read_inputs(arguments.input)
    listing = list_inputs(inputs, arguments.text_field)
    if listing.undeclared:
        remedy = "list its domains under `domains` in the recipe"
        raise ConfigError(listing.undeclared[0], "tells its domains only while it is read", remedy)
    weights = _weights(arguments, list(listing.sources))
    train, check = _draw(listing, weights, arguments)
    texts = [text for name in weights for text in train[name]]
    size = sum(len(text.encode()) for text in texts)
    tqdm.write(f"training on {size / 1e6:.1f} MB in {len(texts):,} documents", file=sys.stderr)
    try:
        with _NewFolder(arguments.output) as folder:
            made = train_tokenizer(arguments.kind, texts, arguments.vocabulary, folder)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise TokenizerError(str(arguments.output), problem, "check the path, its rights and the space") from None
    print(_table(Encoder(made), train, check))
    print(f"{arguments.output}: {vocabulary_size(made):,} tokens")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is read."""
    if os.path.lexists(arguments.output):
        remedy = "choose another --output, or remove it yourself"
        raise TokenizerError(str(arguments.output), "exists, and is not touched", remedy)
    parent = next(folder for folder in arguments.output.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise TokenizerError(str(arguments.output), f"cannot be made in {parent}", "choose another --output")
    for name in ("vocabulary", "bytes", "sentences"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}", f"{value} is too few", "give 1 or more")
    if not 0 <= arguments.valid_fraction < 1:
        raise ConfigError("--valid_fraction", f"{arguments.valid_fraction} is no share", "give a number from 0 to 1")


def _weights(arguments: argparse.Namespace, domains: Sequence[str]) -> dict[str, float]:
    """Weights of the domains that have one above 0, in the order of the input.

    Raises:
        ConfigError: a domain has no weight, a weight no domain, or it is no number.
        MixtureError: the mixture cannot be read, or the weights do not sum to 1.
    """
    if arguments.mixture:
        where, given = str(arguments.mixture), read_mixture(arguments.mixture).domains
    elif arguments.weights:
        where, given = "--weights", _read_weights(arguments.weights)
    else:
        return dict.fromkeys(domains, 1 / len(domains))
    for name in given:
        if name not in domains:
            raise ConfigError(where, f"has a weight for {name!r}, which has no input", nearest(name, domains))
    if missing := [name for name in domains if name not in given]:
        raise ConfigError(where, f"has no weight for {missing[0]!r}", "add it (0 is allowed), or leave its input out")
    weights = normalized(given, where)
    return {name: weights[name] for name in domains if weights[name] > 0}


def _read_weights(items: Sequence[str]) -> dict[str, float]:
    weights = {}
    for item in items:
        name, _, number = item.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ConfigError("--weights", f"{item!r} is no DOMAIN=WEIGHT", "write it like wiki=0.8") from None
    return weights


Texts = dict[str, list[str]]


def _draw(listing: Listing, weights: Mapping[str, float], arguments: argparse.Namespace) -> tuple[Texts, Texts]:
    """For each domain the documents to train on, and held-out ones to measure on."""
    threshold = round(arguments.valid_fraction * 2**64)
    train, check = {}, {}
    for name in listing.sources:
        weight = weights.get(name, 0.0)
        documents = None if arguments.sentences is None else round(weight * arguments.sentences)
        train[name] = Sample(arguments.seed, threshold, round(weight * arguments.bytes), documents)
        check[name] = Sample(arguments.seed, threshold, _CHECKED_BYTES, of_held_out=True)
    draw_samples(listing.units, train, check)
    return {name: train[name].texts() for name in weights}, {name: sample.texts() for name, sample in check.items()}


def _table(encoder: Encoder, train: Texts, check: Texts) -> str:
    """A line a domain: MB that were trained on, and bytes a token of held-out text."""
    width = max(len("domain"), *map(len, check))
    lines = [f"{'domain':<{width}}  {'documents':>10}  {'MB':>8}  bytes/token of held-out text"]
    for name, texts in check.items():
        size = sum(len(text.encode()) for text in texts)
        tokens = sum(map(len, encoder.encode(texts)))
        used = train.get(name, [])
        megabytes = sum(len(text.encode()) for text in used) / 1e6
        lines.append(
            f"{name:<{width}}  {len(used):>10,}  {megabytes:>8,.2f}  {f'{size / tokens:.2f}' if tokens else '-':>11}"
        )
    return "\n".join(lines)


class _NewFolder:
    """A folder beside `output`, to fill, that gets its name when the block ends well and vanishes otherwise."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._folder = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")

    def __enter__(self) -> Path:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        return self._folder

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._folder.rename(self._output)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
