"""Measure a model on the held-out text of a token store: perplexity and bits per byte of every domain.

    python eval/run.py --model runs/demo/base_doge/hf --data runs/demo/store
    python eval/run.py --model runs/demo/base_doge/hf --data runs/demo/store --domains python cpp --output code.json

Every held-out token of every domain of the store is predicted exactly once, also of domains never trained on. Writes
results.json, by default into the model's folder, and prints a table. Exit status: 0 done, 2 the input is wrong.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from doge_ds import __version__
from doge_ds.command_line import Parser
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, DogeError, ModelError, StoreError, TokenizerError, report
from doge_ds.json_files import write_json

VERSION = 1
LONGEST_WINDOW_BY_DEFAULT = 2048
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    try:
        evaluate(_parser().parse_args(arguments))
    except DogeError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Check, measure, write and print. Raises DogeError where the input is wrong, before anything is measured."""
    store = TokenStore(options.data)
    domains = choose_domains(store, options.domains)
    folder = Path(options.model)
    output = options.output or (folder if folder.is_dir() else Path()) / "results.json"
    _check_output(output)
    config = load_config(options.model, store)
    length = choose_sequence_length(config, options.sequence_length)
    device = choose_device(options.device)
    model = load_model(options.model).to(device)

    import torch
    import transformers

    from doge_ds.evaluation.perplexity import HeldOutText, averages, measure_perplexity

    texts = {name: HeldOutText(store.tokens(name, "valid"), store.record(name, "valid").bytes) for name in domains}
    end_of_text_id = store.manifest.tokenizer.end_of_text_id
    found = measure_perplexity(model, texts, end_of_text_id, length, options.batch_size, device)
    perplexity = {"domains": {name: asdict(domain) for name, domain in found.items()}, **averages(found)}
    results = {
        "version": VERSION,
        "model": options.model,
        "data": {"path": str(store.path), "fingerprint": store.fingerprint()},
        "sequence_length": length,
        "versions": {
            "doge_ds": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "perplexity": perplexity,
    }
    write_json(output, results)  # an infinite perplexity becomes null
    print(table(perplexity))
    print(f"written: {output}")


def choose_domains(store: TokenStore, names: Sequence[str] | None) -> list[str]:
    """The domains to measure: those named, or all that have held-out text.

    Raises:
        StoreError: a named domain is not in the store or has no held-out text, or no domain has any.
    """
    records = {name: store.record(name, "valid") for name in names or store.domains}
    found = [name for name, record in records.items() if record.tokens and record.bytes]
    for name in records:
        if name not in found and names:
            raise StoreError(f"{store.path}: {name}", "has no held-out tokens", "name other --domains")
    if not found:
        raise StoreError(str(store.path), "has no held-out tokens in any domain", "prepare it with a held-out share")
    for name in records:
        if name not in found:
            print(f"{name} has no held-out tokens and is left out", file=sys.stderr)
    return found


def load_config(name: str, store: TokenStore) -> Any:
    """The configuration of a model that fits the store's tokens; its weights are not read yet.

    Raises:
        ModelError: no such model, or its vocabulary is smaller than that of the store's tokenizer.
        TokenizerError: it was trained on tokens of another tokenizer.
    """
    where, folder = f"--model {name}", Path(name)
    if not folder.is_dir() and (folder.exists() or not HUB_NAME.fullmatch(name)):
        raise ModelError(where, "is no folder", "give a Hugging Face folder, as a run leaves it in hf/")

    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _cannot_be_loaded(name, error) from None
    tokenizer = store.manifest.tokenizer
    vocabulary_size = getattr(config.get_text_config(), "vocab_size", 0)  # a model of images has none
    # As in training, a vocabulary may be padded to a rounder number than its tokenizer has tokens.
    if vocabulary_size < tokenizer.vocabulary_size:
        problem = f"has a vocabulary of {vocabulary_size}, the store's tokenizer of {tokenizer.vocabulary_size}"
        raise ModelError(where, problem, "give the store that it was trained on, or one made alike")
    trained_with = getattr(config, "doge_ds_tokenizer_sha256", None)
    if trained_with is None:
        print("the model does not say what tokenizer it has; only the vocabulary's size was checked", file=sys.stderr)
    elif trained_with != tokenizer.sha256:
        problem = "was trained with another tokenizer than the store's"
        raise TokenizerError(where, problem, "prepare the text with the model's")
    return config


def load_model(name: str) -> Any:
    """The causal language model, in the precision that it was saved in.

    Raises:
        ModelError: it is none, or its weights are missing, damaged or incomplete.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_be_loaded(name, error) from None
    # transformers fills what the files lack with random numbers and goes on. A perplexity of those would mean nothing.
    if lost := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        problem = f"lacks {len(lost)} of the model's tensors, or has them in another shape: {lost[0]} is the first"
        raise ModelError(f"--model {name}", problem, "export it again")
    return model


def choose_sequence_length(config: Any, wanted: int | None) -> int:
    """Tokens of a window, one of context counted: as asked for, as in training, or all positions, up to 2,048.

    Raises:
        ConfigError: more than the model has positions for, or fewer than 2.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    trained = getattr(config, "doge_ds_sequence_length", None)
    length: int = wanted or trained or min(positions or LONGEST_WINDOW_BY_DEFAULT, LONGEST_WINDOW_BY_DEFAULT)
    # The last token of a window is not fed, so a window may have one token more than the model has positions.
    if length < 2 or (positions is not None and length > positions + 1):
        would_do = "at least 2" if positions is None else f"2 to {positions + 1}"
        raise ConfigError("--sequence_length", f"{length} does not fit the model", f"give {would_do}")
    return length


def choose_device(name: str) -> str:
    """A device that torch can use. `auto` is the GPU where there is one. Raises ConfigError for one that it cannot."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch asserts that it was built with CUDA
        problem = f"torch cannot use it ({_first_line(error)})"
        raise ConfigError(f"--device {name}", problem, "give auto, cpu or a GPU that is there, like cuda:0") from None
    return name


def table(perplexity: dict[str, Any]) -> str:
    """Domains and averages, for the terminal."""
    domains = perplexity["domains"]
    width = max(len("geometric mean"), *map(len, domains))
    lines = [f"{'domain':<{width}}  {'log-perplexity':>14}  {'perplexity':>12}  {'bits/byte':>9}  {'tokens':>12}"]
    lines += [
        f"{name:<{width}}  {d['log_perplexity']:>14.4f}  {d['perplexity']:>12,.2f}  {d['bits_per_byte']:>9.4f}  "
        f"{d['tokens']:>12,}"
        for name, d in domains.items()
    ]
    lines.append(
        f"{'mean':<{width}}  {perplexity['average_log_perplexity']:>14.4f}  {perplexity['average_perplexity']:>12,.2f}"
    )
    lines.append(f"{'geometric mean':<{width}}  {'':>14}  {perplexity['geometric_perplexity']:>12,.2f}")
    return "\n".join(lines)


def _check_output(output: Path) -> None:
    """Raises ConfigError where no file can be written there, or one is there that is no results file of ours."""
    try:
        # Only writing shows whether one can: rights say little on network and read-only file systems.
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        problem = f"nothing can be written there ({error.strerror})"
        raise ConfigError(f"--output {output}", problem, "name a file in a folder that is there and yours") from None
    if not output.exists():
        return
    try:
        found = json.loads(output.read_bytes())
    except (ValueError, OSError):
        found = None
    # A mixture and a manifest have a version too.
    if not (isinstance(found, dict) and found.get("version") == VERSION and isinstance(found.get("perplexity"), dict)):
        raise ConfigError(f"--output {output}", "exists and holds no results of ours", "name another file")


def _cannot_be_loaded(name: str, error: Exception) -> ModelError:
    place = "" if Path(name).is_dir() else "is no folder here, and "
    remedy = "give a Hugging Face folder, as a run leaves it in hf/"
    return ModelError(f"--model {name}", f"{place}cannot be loaded ({_first_line(error)})", remedy)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:; ")


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="Hugging Face folder (RUN/hf) or a name on the hub")
    parser.add_argument("--data", required=True, help="token store with the held-out text")
    parser.add_argument("--tasks", nargs="+", default=["perplexity"], choices=["perplexity"], help="what to measure")
    parser.add_argument("--domains", nargs="+", help="only these domains of the store; by default all")
    parser.add_argument(
        "--output", type=Path, help="by default results.json in the model's folder, or here for a hub name"
    )
    parser.add_argument("--batch_size", type=_positive, default=16, help="windows at a time; changes no result in fp32")
    parser.add_argument("--sequence_length", type=_positive, help="tokens of a window; by default as in training")
    parser.add_argument("--device", default="auto", help="auto (the GPU where there is one), cpu, cuda:1, ...")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive whole number"  # argparse names the type in its message


if __name__ == "__main__":
    sys.exit(main())
