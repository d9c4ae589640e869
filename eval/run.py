"""Measure a model on the held-out text of a token store: perplexity and bits per byte of every domain.

    python eval/run.py --model runs/demo/base_doge/hf --data runs/demo/store
    python eval/run.py --model runs/demo/base_doge/hf --data runs/demo/store --domains python cpp --output code.json

Every held-out token of every domain of the store is predicted exactly once, also of domains never trained on. Prints a
table and writes results.json, by default into the model's folder. Exit status: 0 done, 2 the input is wrong.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from doge_ds import __version__
from doge_ds.command_line import Parser
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, DogeError, ModelError, StoreError, TokenizerError, report

VERSION = 1
LONGEST_WINDOW_BY_DEFAULT = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    try:
        evaluate(_parser().parse_args(arguments))
    except DogeError as error:
        return report(error)
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Check, measure, print and write. Raises DogeError where the input is wrong, before anything is measured."""
    store = TokenStore(options.data)
    domains = choose_domains(store, options.domains)
    folder = Path(options.model)
    output = options.output or (folder if folder.is_dir() else Path()) / "results.json"
    _refuse_to_overwrite(output)
    model = load_model(options.model, store)
    length = choose_sequence_length(model.config, options.sequence_length)

    import torch

    from doge_ds.evaluation.perplexity import HeldOutText, averages, measure_perplexity

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    texts = {name: HeldOutText(store.tokens(name, "valid"), store.record(name, "valid").bytes) for name in domains}
    tokenizer = store.manifest.tokenizer
    found = measure_perplexity(model.to(device), texts, tokenizer.end_of_text_id, length, options.batch_size, device)
    results = {
        "version": VERSION,
        "model": options.model,
        "data": {"path": str(store.path), "fingerprint": store.fingerprint()},
        "sequence_length": length,
        "versions": {"doge_ds": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "perplexity": {"domains": {name: asdict(domain) for name, domain in found.items()}, **averages(found)},
    }
    print(table(results["perplexity"]))
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n")
    temporary.replace(output)
    print(f"written: {output}")


def choose_domains(store: TokenStore, names: Sequence[str] | None) -> list[str]:
    """The domains to measure: those named, or all that have held-out text.

    Raises:
        StoreError: a named domain is not in the store or has no held-out text, or no domain has any.
    """
    for name in names or []:
        if store.record(name, "valid").tokens == 0:
            raise StoreError(f"{store.path}: {name}", "has no held-out tokens", "name other --domains")
    found = [name for name in names or store.domains if store.record(name, "valid").tokens]
    if not found:
        raise StoreError(str(store.path), "has no held-out tokens in any domain", "prepare it with a held-out share")
    for name in store.domains if names is None else []:
        if name not in found:
            print(f"{name} has no held-out tokens and is left out", file=sys.stderr)
    return found


def load_model(name: str, store: TokenStore) -> Any:
    """A causal language model that fits the store's tokens.

    Raises:
        ModelError: no such model, or its vocabulary has another size than the store's tokenizer.
        TokenizerError: it was trained on tokens of another tokenizer.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"--model {name}", f"cannot be loaded ({reason})", "give a Hugging Face folder") from None
    tokenizer = store.manifest.tokenizer
    if model.config.vocab_size != tokenizer.vocabulary_size:
        problem = f"has a vocabulary of {model.config.vocab_size}, the store's tokenizer of {tokenizer.vocabulary_size}"
        raise ModelError(f"--model {name}", problem, "give the store that it was trained on, or one made alike")
    trained_with = getattr(model.config, "doge_ds_tokenizer_sha256", None)
    if trained_with is None:
        print("the model does not say what tokenizer it has; only the vocabulary's size was checked", file=sys.stderr)
    elif trained_with != tokenizer.sha256:
        raise TokenizerError(
            f"--model {name}",
            "was trained with another tokenizer than the store's",
            "prepare the text with the model's",
        )
    return model


def choose_sequence_length(config: Any, wanted: int | None) -> int:
    """Tokens of a window, one of context counted: as asked for, as in training, or all positions, up to 2,048.

    Raises:
        ConfigError: more than the model has positions for, or fewer than 2.
    """
    positions = getattr(config, "max_position_embeddings", None)
    trained = getattr(config, "doge_ds_sequence_length", None)
    length: int = wanted or trained or min(positions or LONGEST_WINDOW_BY_DEFAULT, LONGEST_WINDOW_BY_DEFAULT)
    if length < 2 or (positions is not None and length > positions + 1):
        would_do = "at least 2" if positions is None else f"2 to {positions + 1}"
        raise ConfigError("--sequence_length", f"{length} does not fit the model", f"give {would_do}")
    return length


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


def _refuse_to_overwrite(output: Path) -> None:
    """Only a results file of ours is replaced."""
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}", "lies in no folder", "make the folder, or name another file")
    if not output.exists():
        return
    try:
        is_ours = "perplexity" in json.loads(output.read_text())
    except (ValueError, OSError, TypeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(f"--output {output}", "exists and holds no results of ours", "name another file")


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="Hugging Face folder (RUN/hf) or a name on the hub")
    parser.add_argument("--data", required=True, help="token store with the held-out text")
    parser.add_argument("--tasks", nargs="+", default=["perplexity"], choices=["perplexity"], help="what to measure")
    parser.add_argument("--domains", nargs="+", help="only these domains of the store; by default all")
    parser.add_argument(
        "--output", type=Path, help="by default results.json in the model's folder, or here for a hub name"
    )
    parser.add_argument("--batch_size", type=_positive, default=16, help="windows at a time; does not change results")
    parser.add_argument("--sequence_length", type=_positive, help="tokens of a window; by default as in training")
    parser.add_argument("--device", help="by default the GPU where there is one")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive whole number"  # argparse names the type in its message


if __name__ == "__main__":
    sys.exit(main())
