"""A base run's checkpoint as a Hugging Face folder: what every base run ends with, and `doge-ds export` on demand."""

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from doge_ds.config import BaseConfig, for_publication, load_config
from doge_ds.data.order import MixtureOrder, Segment
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, RunError, StoreError
from doge_ds.reporting.run_files import Facts, read_facts

_EXAMPLES = """examples:
  doge-ds export runs/base --output hf_bf16 --dtype bfloat16
  doge-ds export runs/base --output halfway --step 5000 --data /new/place/of/the/store

The folder has safetensors, config.json, the tokenizer of the token store, and README.md with the mixture, the tokens
seen and how to train it again. Works on a run that is still under way, on a machine without GPUs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds export`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of train_base.py")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="precision of the weights (default: the run's export_dtype)"
    )
    parser.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    parser.add_argument("--data", type=Path, metavar="STORE", help="the token store, if it is no longer where it was")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds export`: write the folder and say where it is."""
    if os.path.lexists(arguments.output):
        raise ConfigError(f"--output {arguments.output}", "exists, and is not touched", "name another folder")
    export_run(arguments.run, arguments.output, arguments.dtype, arguments.step, arguments.data)
    print(f"written: {arguments.output}")
    return 0


def export_run(
    run: Path, output: Path, dtype: str | None = None, step: int | None = None, data: Path | None = None
) -> None:
    """Write one checkpoint of a base run as a Hugging Face folder, in one piece or not at all.

    Args:
        run: run directory.
        output: the new folder; replaced where it exists.
        dtype: "float32" or "bfloat16"; None for the run's own.
        step: of the checkpoint; None for the latest.
        data: the token store, where it is not the one that the run names.

    Raises:
        RunError: no base run, no such checkpoint, or one that cannot be read or does not fit config.json.
        StoreError: not the store that the run was trained on.
        ConfigError: the output cannot be written there, or run.json or config.json cannot be read.
    """
    _check_place(output)
    config, facts, stages = _read_run(run)
    store = TokenStore(data or config.data.path)
    if store.fingerprint() != facts.store:
        problem = f"is not the store {facts.store} that {run} was trained on"
        raise StoreError(str(store.path), problem, "give that one with --data")
    checkpoint = _choose_checkpoint(run / "checkpoints", step)

    import torch

    from doge_ds.training.hugging_face import export_checkpoint
    from doge_ds.training.launch import quieten_libraries
    from doge_ds.training.model import model_config, parameter_count
    from doge_ds.training.model_card import model_card

    quieten_libraries()
    tokenizer, length = store.manifest.tokenizer, config.data.sequence_length
    model = model_config(config.model, tokenizer.vocabulary_size, tokenizer.end_of_text_id, length)
    done = int(checkpoint.name.removeprefix("step"))
    dtype = dtype or config.training.export_dtype
    counts = base_order(store, config, stages).counts(done * config.training.global_batch_size)
    card = model_card(
        run.absolute().name,
        for_publication(config.model_dump(mode="json")),
        facts.model_dump(),
        parameter_count(model),
        done,
        {name: count * length for name, count in counts.items()},
        dtype,
    )
    keys = {"doge_ds_sequence_length": length, "doge_ds_tokenizer_sha256": tokenizer.sha256}
    export_checkpoint(checkpoint, model, keys, store.tokenizer_folder, card, output, getattr(torch, dtype))


def base_order(
    store: TokenStore, config: BaseConfig, stages: Sequence[tuple[int, Mapping[str, float]]]
) -> MixtureOrder:
    """The order of samples of a base run: which domain and sequence comes n-th.

    Args:
        stages: weights of the domains, from how many steps done on; all of the same domains.
    """
    counts = {name: store.sequence_count(name, config.data.sequence_length) for name in stages[0][1]}
    segments = [Segment(start * config.training.global_batch_size, weights) for start, weights in stages]
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


def _read_run(run: Path) -> tuple[BaseConfig, Facts, list[tuple[int, dict[str, float]]]]:
    """Its resolved configuration, its facts, and of these the stages of the mixture."""
    if not (run / "run.json").is_file():
        raise RunError(str(run), "is no run directory: it has no run.json", "name one that train_base.py made")
    facts = read_facts(run)
    if facts.program != "train_base":
        raise RunError(str(run), f"is a run of {facts.program}", "name one that train_base.py made")
    if not facts.mixture:
        raise RunError(f"{run / 'run.json'}: mixture", "is missing", "restore the file from a copy")
    return load_config(BaseConfig, run / "config.json"), facts, facts.stages


def _choose_checkpoint(folder: Path, step: int | None) -> Path:
    """The folder of the latest checkpoint, or of that step's."""
    pointer = folder / "latest"
    latest = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    names = [path.name for path in folder.glob("step*") if re.fullmatch(r"step\d{8}", path.name)]
    # A later folder than the latest one was begun and never finished.
    whole = sorted(name for name in names if name <= latest)
    chosen = latest if step is None else f"step{step:08d}"
    if chosen not in whole:
        steps = ", ".join(str(int(name.removeprefix("step"))) for name in whole) or "none"
        problem = f"has no checkpoint of step {step}" if step is not None else "has no checkpoint"
        raise RunError(str(folder), problem, f"the steps there are: {steps}")
    return folder / chosen
