"""A checkpoint as a Hugging Face folder: what every base run ends with, and `doge-ds export` on demand."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from doge_ds.config import BaseConfig, ProxyConfig, for_publication, load_config
from doge_ds.data.batches import BatchSizes
from doge_ds.data.order import MixtureOrder, Segment
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, RunError, StoreError
from doge_ds.mixture import read_mixture
from doge_ds.reporting.run_files import Facts, read_facts
from doge_ds.training.checkpoint_files import (
    Checkpoint,
    choose_checkpoint,
    read_checkpoint,
    refuse_what_others_may_have_written,
)
from doge_ds.training.run_directory import refuse_pattern

_EXAMPLES = """examples:
  doge-ds export runs/base -o hf_bf16 --dtype bfloat16
  doge-ds export runs/base/checkpoints/step00005000 -o halfway --data /new/place/of/the/store --max_shard_size 2GB

The folder has safetensors, config.json, the tokenizer of the token store, and README.md with the mixture, the tokens
seen and how to train it again. Takes checkpoints of any number of ranks, of base and proxy runs that are finished or
still under way, on a machine without GPUs."""
_CHECKPOINT = re.compile(r"step(\d{8})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds export`."""
    parser.epilog = _EXAMPLES
    what = "run directory, or one of its checkpoints: RUN/checkpoints/step00001000"
    parser.add_argument("run", type=Path, metavar="CHECKPOINT", help=what)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="precision of the weights (default: the run's export_dtype; of a proxy float32)",
    )
    parser.add_argument("--step", type=int, help="which checkpoint of the run directory (default: the latest)")
    parser.add_argument("--max_shard_size", metavar="SIZE", help="of one file, as 2GB (default: transformers' own)")
    parser.add_argument("--data", type=Path, metavar="STORE", help="the token store, if it is no longer where it was")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds export`: write the folder and say where it is."""
    if os.path.lexists(arguments.output):
        raise ConfigError(f"--output {arguments.output}", "exists, and is not touched", "name another folder")
    size = arguments.max_shard_size
    if size is not None and not re.fullmatch(r"[1-9]\d*[KMGT]B", size):
        raise ConfigError(f"--max_shard_size {size}", "is no size", "write it like 500MB or 2GB")
    place, step = run_and_step(arguments.run, arguments.step)
    export_run(place, arguments.output, arguments.dtype, step, arguments.data, size)
    print(f"written: {arguments.output}")
    return 0


def export_run(
    run: Path,
    output: Path,
    dtype: str | None = None,
    step: int | None = None,
    data: Path | None = None,
    max_shard_size: str | None = None,
) -> None:
    """Write one checkpoint of a run as a Hugging Face folder, in one piece or not at all.

    Args:
        run: run directory.
        output: the new folder; replaced where it exists.
        dtype: "float32" or "bfloat16"; None for the run's own, which a proxy has not: fp32.
        step: of the checkpoint; None for the latest.
        data: the token store, where it is not the one that the run names.
        max_shard_size: of one safetensors file, such as "2GB"; None for transformers' own.

    Raises:
        RunError: no run, no such checkpoint, or one that cannot be read or does not fit config.json.
        StoreError: not the store that the run was trained on.
        ConfigError: the output cannot be written there, or run.json or config.json cannot be read.
    """
    _check_place(output)
    refuse_pattern(run)
    config, facts = _read_run(run)
    store = TokenStore(data or config.data.path)
    if store.fingerprint() != facts.store:
        problem = f"is not the store {facts.store} that {run} was trained on"
        raise StoreError(str(store.path), problem, "give that one with --data")
    checkpoint = _choose_checkpoint(run, step)

    import torch

    from doge_ds.training.hugging_face import export_checkpoint
    from doge_ds.training.launch import quieten_libraries
    from doge_ds.training.model import model_config, parameter_count
    from doge_ds.training.model_card import model_card

    quieten_libraries()
    tokenizer, length = store.manifest.tokenizer, config.data.sequence_length
    model = model_config(config.model, tokenizer.vocabulary_size, tokenizer.end_of_text_id, length)
    done = int(checkpoint.name.removeprefix("step"))
    dtype = dtype or (config.training.export_dtype if isinstance(config, BaseConfig) else "float32")
    card = model_card(
        run.absolute().name,
        for_publication(config.model_dump(mode="json")),
        {**facts.model_dump(), "mixture": facts.mixture or _learned(run)},
        parameter_count(model),
        done,
        {name: count * length for name, count in _sequences_seen(store, config, facts, done).items()},
        dtype,
    )
    keys = {"doge_ds_sequence_length": length, "doge_ds_tokenizer_sha256": tokenizer.sha256}
    folder = store.tokenizer_folder
    export_checkpoint(checkpoint, model, keys, folder, card, output, getattr(torch, dtype), max_shard_size)


def base_order(
    store: TokenStore,
    config: BaseConfig,
    stages: Sequence[tuple[int, Mapping[str, float]]],
    sizes: BatchSizes | None = None,
) -> MixtureOrder:
    """The order of samples of a base run: which domain and sequence comes n-th.

    Args:
        stages: weights of the domains, from how many steps done on; all of the same domains.
        sizes: sequences of every step; None where they are the configuration's throughout.
    """
    counts = {name: store.sequence_count(name, config.data.sequence_length) for name in stages[0][1]}
    sizes = sizes or BatchSizes.of(config.training.global_batch_size)
    segments = [Segment(sizes.samples(start), weights) for start, weights in stages]
    return MixtureOrder(counts, segments, config.training.seed)


def _check_place(output: Path) -> None:
    """Raises ConfigError where no folder can be made."""
    try:
        # Only writing shows whether one can: rights say little on network and read-only file systems.
        tempfile.TemporaryDirectory(dir=output.absolute().parent).cleanup()
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        remedy = "name a folder inside one that is there and yours"
        raise ConfigError(str(output), problem, remedy) from None


def run_and_step(place: Path, step: int | None) -> tuple[Path, int | None]:
    """The run directory, and the step where `place` is one of its checkpoints.

    Raises:
        ConfigError: it is the checkpoint of another step than `step`.
    """
    named = _CHECKPOINT.fullmatch(place.name)
    if named is None or place.absolute().parent.name != "checkpoints":
        return place, step
    if step not in (None, int(named[1])):
        raise ConfigError(f"--step {step}", f"is not the step of {place}", "leave it out, or name the run directory")
    return place.absolute().parents[1], int(named[1])


def _read_run(run: Path) -> tuple[BaseConfig | ProxyConfig, Facts]:
    """Its resolved configuration and its facts; a base's have a mixture."""
    if not os.path.isfile(run / "run.json"):  # Path.is_file raises OSError for a long name
        problem = "is no run directory: it has no run.json"
        raise RunError(str(run), problem, "name one that train_base.py or train_proxy.py made")
    facts = read_facts(run)
    if facts.program == "train_proxy":
        return load_config(ProxyConfig, run / "config.json"), facts
    if not facts.mixture:
        raise RunError(f"{run / 'run.json'}: mixture", "is missing", "restore the file from a copy")
    return load_config(BaseConfig, run / "config.json"), facts


def _learned(run: Path) -> dict[str, float] | None:
    """The mean weights that a finished proxy has learned."""
    return read_mixture(run / "mixture.json").domains if (run / "mixture.json").is_file() else None


def _sequences_seen(store: TokenStore, config: BaseConfig | ProxyConfig, facts: Facts, steps: int) -> Mapping[str, int]:
    """Of each domain, and of the mix that may be a proxy's target, in the first `steps` steps."""
    if isinstance(config, BaseConfig):
        sizes = _sizes(facts, config.training.global_batch_size)
        return base_order(store, config, facts.stages, sizes).counts(sizes.samples(steps))
    from doge_ds.proxy_data import proxy_loader

    sizes = _sizes(facts, config.training.sequences_per_domain)
    return proxy_loader(config, store, sizes, sizes.last.sequences).needs(steps)


def _sizes(facts: Facts, configured: int) -> BatchSizes:
    """Sequences of every step: the record, where they changed; else the configuration's."""
    if not facts.batches:
        return BatchSizes.of(configured)
    return BatchSizes.from_json([stage.model_dump() for stage in facts.batches])


def _choose_checkpoint(run: Path, step: int | None) -> Path:
    """The folder of the newest whole checkpoint, or of that step's; one that is safe to load."""
    folder = run / "checkpoints"
    whole = [found for path in sorted(folder.glob("step*")) if isinstance(found := read_checkpoint(path), Checkpoint)]
    if step is None:
        newest, passed_over = choose_checkpoint(folder)
        chosen = [newest] if newest else []
        for problem in passed_over:
            print(f"warning: {problem}", file=sys.stderr, flush=True)
    else:
        chosen = [checkpoint for checkpoint in whole if checkpoint.step == step]
    if not chosen:
        steps = ", ".join(str(checkpoint.step) for checkpoint in whole) or "none"
        problem = f"has no checkpoint of step {step}" if step is not None else "has no checkpoint"
        raise RunError(str(folder), problem, f"the steps there are: {steps}")
    refuse_what_others_may_have_written(run, chosen[0].folder)
    if damage := chosen[0].find_damage():
        raise RunError(str(chosen[0].folder), f"is not as it was written: {damage}", "choose another one with --step")
    return chosen[0].folder
