"""Raw text to a token store: every domain's documents tokenized on all cores and packed into STORE/<domain>/*.bin.

Input is read in units and tokenized into parts beside the store (`parts.py`), by one process or by many; the last call
decides what is held out and what is a copy (`fates.py`), and merges. The store appears under its name when it is whole,
and its bytes depend on the documents and the options only, not on the number of processes or on what was killed.
"""

import argparse
import contextlib
import fcntl
import importlib.metadata
import itertools
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from doge_ds.data.preparing.encoding import EncoderPool
from doge_ds.data.preparing.fates import HeldOutRule, copies_note, decide_fates
from doge_ds.data.preparing.merge import merge_parts
from doge_ds.data.preparing.parts import Part, PartsFolder, UnitRecord
from doge_ds.data.preparing.store_tokenizer import TokenizerChoice, make_tokenizer
from doge_ds.data.preparing.tokenizing import Shard, progress_bar, read_shard, tokenize
from doge_ds.data.reading.inputs import Listing, check_domain_name, list_inputs
from doge_ds.data.reading.recipes import Recipe, read_recipe
from doge_ds.data.reading.sources import Inputs, no_documents, read_inputs
from doge_ds.data.reading.units import Unit
from doge_ds.data.tokenizer import load_tokenizer
from doge_ds.data.tokens import DomainRecord, Manifest, TokenizerRecord, TokenStore
from doge_ds.errors import ConfigError, StoreError
from doge_ds.json_files import copy_contents

_EXAMPLES = """examples:
  doge-ds prepare ds_configs/data/slimpajama_6b.json --output data/slimpajama_6b
  doge-ds prepare --input books=books/ code=code.jsonl.gz notes=notes/ --output store --tokenizer gpt2
  doge-ds prepare --input wiki=part1.parquet wiki=part2.parquet news=news/ --output store --train_tokenizer 32000
  doge-ds prepare --input web=web.jsonl.zst chat=saved_dataset/ --output store --tokenizer gpt2 --text_field meta.text
  doge-ds prepare --input environment --output runs/demo/store --train_tokenizer 6000

on a cluster, 64 jobs and then one that merges:
  sbatch --array=0-63 slurm/prepare.sh RECIPE.json --output STORE
  sbatch --dependency=afterok:JOB slurm/prepare.sh RECIPE.json --output STORE

RECIPE is a JSON file that names datasets of the Hugging Face hub, which are streamed, or files; ds_configs/data/ has
some, and a template. A path after --input is a .txt file (one document), a .jsonl, .jsonl.gz, .jsonl.zst or .parquet
file (one a line or row), a folder of such files, read recursively, or a dataset's folder made by Hugging Face's
save_to_disk: of several splits the one named train is read, and PATH/SPLIT names another. `environment` stands for six
domains made from what this Python installation has on disk, without a download. A tokenizer is trained (sentencepiece,
unigram, lossless) on 800 bytes of text for each of its tokens, at most 20 MB, drawn evenly from the domains; `doge-ds
tokenizer` trains others. Which documents are held out depends on their content alone.

Killed or stopped, the same command goes on where it was: finished parts are kept in STORE.parts until STORE is whole.
An existing STORE is never touched."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds prepare`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="a JSON file that says what to read")
    parser.add_argument(
        "--input", nargs="+", action="extend", metavar="DOMAIN=PATH",
        help="instead: a domain and a file or folder of text (see below); or the one word environment",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="STORE", help="the folder to make")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--tokenizer", metavar="NAME_OR_FOLDER", help="a Hugging Face tokenizer, or a sentencepiece .model file"
    )
    which.add_argument("--train_tokenizer", type=int, metavar="VOCABULARY", help="train one of that many tokens")
    parser.add_argument(
        "--text_field", default="text", help="field or column of the text; a.b: b inside a (default: text)"
    )
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--valid_fraction", type=float, help="share of the documents held out (default: 0.05)")
    held_out.add_argument("--valid_documents", type=int, help="instead: so many documents of every domain")
    held_out.add_argument(
        "--valid_tokens", type=int, help="instead: documents of every domain until they have so many tokens"
    )
    parser.add_argument(
        "--deduplicate", action="store_true", help="drop documents that are equal to an earlier one, in any domain"
    )
    parser.add_argument("--workers", type=int, help="processes that tokenize (default: one a core)")
    parser.add_argument(
        "--shard", metavar="I/N", help="tokenize the I-th of N shares of the input, I from 0, and do not merge"
    )


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds prepare`: build the store and print what is in it."""
    if (arguments.recipe is None) == (arguments.input is None):
        raise ConfigError("command line", "names no input, or two", "give RECIPE or --input, one of the two")
    recipe = read_recipe(arguments.recipe) if arguments.recipe else None
    tokenizer = arguments.tokenizer
    if recipe and tokenizer is None and arguments.train_tokenizer is None:
        tokenizer = recipe.tokenizer
    store = prepare(
        recipe or read_inputs(arguments.input),
        arguments.output,
        tokenizer=tokenizer,
        train_tokenizer=arguments.train_tokenizer,
        held_out=_held_out_rule(arguments, recipe),
        deduplicate=arguments.deduplicate or (recipe is not None and recipe.deduplicate),
        workers=arguments.workers,
        text_field=arguments.text_field,
        shard=read_shard(arguments.shard) if arguments.shard else None,
    )
    if store:
        print(store_table(store))
    return 0


def _held_out_rule(arguments: argparse.Namespace, recipe: Recipe | None) -> HeldOutRule:
    """The command line's, else the recipe's, else 5%."""
    for given in (arguments, recipe):
        rule = HeldOutRule(*(getattr(given, f"valid_{name}", None) for name in ("fraction", "documents", "tokens")))
        if rule != HeldOutRule():
            return rule
    return HeldOutRule(fraction=0.05)


def prepare(
    inputs: Inputs | Recipe,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    train_tokenizer: int | None = None,
    held_out: HeldOutRule = HeldOutRule(fraction=0.05),  # noqa: B008  frozen
    deduplicate: bool = False,
    workers: int | None = None,
    text_field: str = "text",
    shard: Shard | None = None,
) -> TokenStore | None:
    """Build a token store; progress goes to stderr.

    Args:
        inputs: files, folders and saved datasets of each domain, or "environment", or a recipe.
        output: the store's folder, which must not exist. OUTPUT.parts beside it holds what is finished meanwhile.
        tokenizer, train_tokenizer: a name, folder or .model file, or the vocabulary size of one to train: one of them.
        held_out: which documents are held out.
        deduplicate: drop all but the first of equal documents, over all domains.
        workers: processes that tokenize; None: one a core. With more than one, a script that calls this needs the
            usual `if __name__ == "__main__":`, because processes are spawned.
        text_field: of files; a recipe's sources have their own.
        shard: tokenize only this share of the input, and do not merge; nothing is returned then.

    Raises:
        StoreError: the text cannot be read or is too little, or the store cannot be written or is there already.
        TokenizerError: the tokenizer cannot be loaded or trained.
        ConfigError: an option is out of range.
    """
    output = Path(output)
    choice = TokenizerChoice(tokenizer, train_tokenizer, held_out)
    workers = _check_options(output, choice, workers, shard)
    for name in inputs if isinstance(inputs, Mapping) else ():
        check_domain_name(name)
    if tokenizer is not None:
        load_tokenizer(tokenizer)  # a misspelt name should be told before thousands of files are listed
    listing = list_inputs(inputs, text_field)
    work = output.with_name(f"{output.name}.parts")
    try:
        _open_work(work)
        record, tokenizer_folder, encoder = make_tokenizer(choice, listing, work)
        dtype: Literal["uint16", "uint32"] = "uint16" if record.vocabulary_size <= 1 << 16 else "uint32"
        folder = PartsFolder(work, dtype, [record.sha256])
        with EncoderPool(encoder, dtype, workers) as pool:
            tokenize(shard.of(listing.units) if shard else listing.units, folder, pool)
        if shard:
            _report_shard(shard, listing.units, folder)
            return None
        with _new_folder(work, output) as store:
            copy_contents(tokenizer_folder, store / "tokenizer")
            manifest = _merge(listing, folder, record, dtype, held_out, deduplicate, store)
            manifest.built_from.update(choice.describe(), versions=_versions())
            (store / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if os.path.lexists(output):
            raise StoreError(str(output), "was finished by another process meanwhile", "use that store") from None
        remedy = "check the path, its rights and the space; then start again, finished parts are kept"
        raise StoreError(str(output), f"cannot be written ({error.strerror or error})", remedy) from None
    finally:
        if shard is None:  # other shards may be at work there
            _remove_if_empty(work)
    return TokenStore(output)


def _check_options(output: Path, choice: TokenizerChoice, workers: int | None, shard: Shard | None) -> int:
    """Refuse what can be refused before anything is read. The number of workers."""
    if os.path.lexists(output):
        raise StoreError(str(output), "exists, and is not touched", "choose another --output, or remove it yourself")
    choice.check()
    if shard and choice.train is not None:
        remedy = "train it first, with `doge-ds tokenizer`, and give it as --tokenizer"
        raise ConfigError("--shard", "leaves each process a share of the text that a tokenizer is trained on", remedy)
    if workers is not None and workers < 1:
        raise ConfigError("--workers", f"{workers} is too few", "give 1 or more, or leave it out for one a core")
    return workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _report_shard(shard: Shard, units: Sequence[Unit], folder: PartsFolder) -> None:
    done = sum(folder.record(folder.key(unit)) is not None for unit in units)
    print(f"shard {shard.index} of {shard.count} is done; {done} of {len(units)} pieces of the input are whole")
    print("when all are, the same command without --shard merges them")


def _merge(
    listing: Listing,
    folder: PartsFolder,
    tokenizer: TokenizerRecord,
    dtype: Literal["uint16", "uint32"],
    held_out: HeldOutRule,
    deduplicate: bool,
    store: Path,
) -> Manifest:
    """Write the domains' files into the store; its manifest."""
    records = [(key, _whole(folder, key, unit)) for unit in listing.units for key in [folder.key(unit)]]
    _refuse_inputs_without_documents([record for _, record in records])
    parts = [folder.part(key, number, record) for key, record in records for number in record.parts]
    domains = _all_domains(listing, parts)
    fates = decide_fates(parts, domains, held_out, deduplicate, store / ".fates")
    if note := copies_note(domains, fates, deduplicate):
        tqdm.write(note, file=sys.stderr)
    with progress_bar("merging", sum(part.tokens_file.stat().st_size for part in parts)) as progress:
        files = merge_parts(parts, fates, domains, dtype, store, progress)
    return Manifest(
        version=1,
        dtype=dtype,
        tokenizer=tokenizer,
        domains={
            name: DomainRecord(
                train=files[name]["train"],
                valid=files[name]["valid"],
                sources=listing.sources.get(name, listing.undeclared),
                copies_within=copies.within,
                copies_across=copies.across,
            )
            for name, copies in zip(domains, fates.copies, strict=True)
        },
        built_from={**listing.built_from, **held_out.describe(), "deduplicate": deduplicate},
    )


def _whole(folder: PartsFolder, key: str, unit: Unit) -> UnitRecord:
    record = folder.record(key)
    if record is None:
        raise StoreError(unit.name, "was read, but its part has vanished", "start again: what is missing is done again")
    return record


def _refuse_inputs_without_documents(records: Sequence[UnitRecord]) -> None:
    """A path that holds nothing is a mistake; how many empty documents were passed over, a line each."""
    for given, pieces in itertools.groupby(records, key=lambda record: record.given):
        of_given = list(pieces)
        if not any(record.parts for record in of_given):
            raise no_documents(given)
        if empty := sum(record.empty_documents for record in of_given):
            tqdm.write(f"{given}: skipped {empty} empty documents", file=sys.stderr)


def _all_domains(listing: Listing, parts: Sequence[Part]) -> list[str]:
    """Those that the user named, in that order, then those that only the documents name."""
    found = {name for part in parts for name in part.domains}
    return [*listing.sources, *sorted(found - set(listing.sources))]


@contextmanager
def _new_folder(work: Path, output: Path) -> Iterator[Path]:
    """A folder to fill, among the parts, that becomes `output` when the block ends well and vanishes otherwise."""
    folder = work / f"store.{uuid.uuid4().hex[:8]}"
    _remove_abandoned_folders(work)
    try:
        with _locked(folder.with_suffix(".lock")):
            folder.mkdir()
            yield folder
        if os.path.lexists(output):  # rename would replace an empty folder
            raise StoreError(str(output), "came into being meanwhile, and is not touched", "choose another --output")
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """A lock that the system gives back when this process dies, however it does."""
    try:
        with lock.open("w") as stream:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield
    finally:
        lock.unlink(missing_ok=True)


def _remove_abandoned_folders(work: Path) -> None:
    """A merge that was killed leaves up to a whole store."""
    for lock in work.glob("store.*.lock"):
        with contextlib.suppress(OSError), lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: that process is alive
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _open_work(work: Path) -> None:
    """Make the folder of parts, or find it; another folder of that name is not touched."""
    mark = work / "README"
    if work.exists() and not mark.exists() and (not work.is_dir() or any(work.iterdir())):
        problem = "is there already, and is no folder of unfinished parts"
        raise StoreError(str(work), problem, "move it away, or choose another --output")
    work.mkdir(parents=True, exist_ok=True)
    mark.write_text("What `doge-ds prepare` has done of an unfinished store. It goes when the store is whole.\n")


def _remove_if_empty(work: Path) -> None:
    """A mistake that is found at once leaves nothing behind."""
    if work.is_dir() and [path.name for path in work.iterdir()] == ["README"]:
        shutil.rmtree(work, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("sentencepiece", "tokenizers", "transformers")}


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
