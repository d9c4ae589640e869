"""Models to be measured: found, checked before their weights are read, loaded whole or not at all."""

import os
from pathlib import Path
from typing import Any

from doge_ds.errors import ConfigError, ModelError, TokenizerError, first_line
from doge_ds.model_files import NO_PROGRAMS, ONLY_NUMBERS, check_implementations, check_model_folder, loading_error

LONGEST_WINDOW_BY_DEFAULT = 2048
REMEDY = "give a Hugging Face folder, as a run leaves it in hf/"


def load_config(name: str, folder: str) -> Any:
    """The configuration of a causal language model; its weights are not read yet.

    Args:
        name: as the user gave it, for messages.
        folder: a Hugging Face folder, or a name on the hub.

    Raises:
        ModelError: no such model.
    """
    check_model_folder(f"--model {name}", Path(folder))

    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, **NO_PROGRAMS)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise _cannot_be_loaded(name, error) from None
    check_implementations(f"--model {name}", config)
    return config


def check_tokenizer(name: str, config: Any, vocabulary_size: int, sha256: str) -> str:
    """Whether the model was trained on tokens of the store's tokenizer; a warning where it does not say so, or "".

    Args:
        name: of the model.
        config: its configuration.
        vocabulary_size, sha256: of the store's tokenizer.

    Raises:
        ModelError: its vocabulary is smaller than that of the store's tokenizer.
        TokenizerError: it was trained on tokens of another tokenizer.
    """
    where = f"--model {name}"
    model_size = getattr(config.get_text_config(), "vocab_size", 0)  # a model of images has none
    # As in training, a vocabulary may be padded to a rounder number than its tokenizer has tokens.
    if model_size < vocabulary_size:
        problem = f"has a vocabulary of {model_size}, the store's tokenizer of {vocabulary_size}"
        raise ModelError(where, problem, "give the store that it was trained on, or one made alike")
    trained_with = getattr(config, "doge_ds_tokenizer_sha256", None)
    if trained_with is None:
        return f"{name} does not say what tokenizer it has; only the vocabulary's size was checked"
    if trained_with != sha256:
        problem = "was trained with another tokenizer than the store's"
        raise TokenizerError(where, problem, "prepare the text with the model's")
    return ""


def load_model(name: str) -> Any:
    """The causal language model, in the precision that it was saved in.

    Raises:
        ModelError: it is none, or its weights are missing, damaged or incomplete.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **ONLY_NUMBERS
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_be_loaded(name, error) from None
    # transformers fills what the files lack with random numbers and goes on. A perplexity of those would mean nothing.
    if lost := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        problem = f"lacks {len(lost)} of the model's tensors, or has them in another shape: {lost[0]} is the first"
        raise ModelError(f"--model {name}", problem, "export it again")
    return model


def load_tokenizer(name: str) -> Any:
    """The tokenizer that lies beside the model, for tasks, which are text. Raises ModelError where none does."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **NO_PROGRAMS)
    except Exception as error:  # OSError, ValueError, KeyError and the bare Exception of Rust code: all mean the same
        raise ModelError(f"--model {name}", f"has no tokenizer ({first_line(error)})", "save one beside it") from None
    # From a folder without one, transformers makes an empty tokenizer of the model's class.
    if len(tokenizer.get_vocab()) < 2:
        raise ModelError(f"--model {name}", "has no tokenizer", "save one beside it")
    return tokenizer


def identity(name: str) -> list[Any]:
    """What tells this model from another under the same name: names, sizes and times of its files."""
    folder = Path(name)
    if not folder.is_dir():
        return [name]
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".bin", ".model"))
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.name != "results.json"]
    return [str(folder.resolve()), *facts]


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


def choose_device(name: str, local_rank: int = 0) -> str:
    """A device that torch can use. `auto` is this rank's GPU where there is one. Raises ConfigError for one that it
    cannot."""
    import torch

    if name == "auto":
        return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        problem = f"torch cannot use it ({first_line(error)})"
        raise ConfigError(f"--device {name}", problem, "give auto, cpu or a GPU that is there, like cuda:0") from None
    return name


def _cannot_be_loaded(name: str, error: Exception) -> ModelError:
    place = "" if os.path.isdir(name) else "is no folder here, and"
    return loading_error(f"--model {name}", place, error, REMEDY)
