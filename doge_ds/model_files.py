"""Models and tokenizers that others have made: what of them is read, and what is refused because it could run as a
program or lies elsewhere. docs/security.md says why.

A pickle (pytorch_model.bin, .pt, .ckpt) runs whatever its writer put there when it is loaded; safetensors hold numbers.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doge_ds.errors import ModelError
from doge_ds.json_files import is_inside, read_json_object

# For every `from_pretrained`. Without the first, transformers asks on the terminal whether to run a model's own code.
NO_PROGRAMS = {"trust_remote_code": False}
ONLY_NUMBERS = {**NO_PROGRAMS, "use_safetensors": True}
CONVERT = (
    "convert it where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors"
)
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model.safetensors.index.json"


def check_model_folder(where: str, folder: Path) -> None:
    """Look at a folder before transformers does; what is no folder here is a name on the hub, which transformers reads
    with ONLY_NUMBERS.

    Args:
        where: the option or key that names it, for messages.

    Raises:
        ModelError: it is neither a folder nor a name as the hub has them, its weights are pickles only, or its index
            names files outside of it.
        ConfigError: the index is no JSON.
    """
    if not os.path.isdir(folder):  # Path.is_dir raises OSError for a long name
        if os.path.exists(folder) or not HUB_NAME.fullmatch(str(folder)):
            raise ModelError(where, "is no folder", "give a Hugging Face folder, as a run leaves it in hf/")
        return
    index = folder / _INDEX
    if not (index.is_file() or (folder / "model.safetensors").is_file()):
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            problem = f"has its weights as a pickle, {pickles[0]}, which could run as a program"
            raise ModelError(where, problem, CONVERT)
    if index.is_file():
        _check_index(where, index)


def _check_index(where: str, index: Path) -> None:
    files = read_json_object(index, any_number=True).get("weight_map")
    if not isinstance(files, dict):
        raise ModelError(where, f"{_INDEX} has no weight_map", "save the model again")
    for file in files.values():
        if not is_inside(file):
            raise ModelError(where, f"{_INDEX} names {file!r}, which is no file of the folder", "save the model again")


def check_implementations(where: str, config: Any) -> None:
    """Refuse a model whose config.json names code on the hub, as transformers downloads and runs it where the package
    `kernels` is installed.

    Args:
        config: a transformers configuration, as the model's files have it.

    Raises:
        ModelError: it does.
    """
    for name in _implementations(config):
        if "/" in name:
            problem = f"wants code from the hub, {name!r}"
            raise ModelError(where, problem, "delete attn_implementation and experts_implementation in its config.json")


def _implementations(config: Any) -> Iterator[str]:
    for key in ("_attn_implementation", "_experts_implementation"):
        yield str(getattr(config, key, ""))
    for key in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, key, None)) is not None:
            yield from _implementations(inner)


def loading_error(where: str, name: str, error: Exception, remedy: str) -> ModelError:
    """For what transformers cannot load.

    Args:
        where: the option or key that names it.
        name: what it is called, "" where `where` says it.
        remedy: where there is no better one.
    """
    begins = f"{name} " if name else ""
    reason = " ".join(str(error).split())
    if "custom code" in reason:
        problem = f"{begins}has code of its own, which is not run"
        return ModelError(where, problem, "take a model of a type that transformers has")
    if "file named model.safetensors" in reason:
        remedy = CONVERT
    return ModelError(where, f"{begins}cannot be loaded ({reason[:200]})", remedy)
