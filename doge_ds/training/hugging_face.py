"""A DeepSpeed checkpoint as a Hugging Face folder, on one process and without the training machine."""

import io
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from doge_ds.errors import RunError, first_line
from doge_ds.json_files import copy_contents


def export_checkpoint(
    checkpoint: Path,
    config: Any,
    facts: Mapping[str, Any],
    tokenizer_folder: Path,
    card: str,
    output: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | None = None,
) -> None:
    """Write `output`: safetensors, config.json, the tokenizer and README.md; in one piece or not at all.

    Args:
        checkpoint: folder of one DeepSpeed checkpoint, ZeRO-2 or ZeRO-3, of any number of ranks.
        config: the transformers configuration that the model was built from.
        facts: further keys for config.json, for those who evaluate the model.
        tokenizer_folder: the store's.
        card: README.md.
        output: the new folder; replaced where it exists.
        dtype: of the saved tensors; the checkpoint's are fp32.
        max_shard_size: of one safetensors file, such as "2GB"; None for transformers' own.

    Raises:
        RunError: the checkpoint cannot be read, it does not fit the model, or the output cannot be written.
    """
    model = _model_with(_read_weights(checkpoint), config, checkpoint)
    model.to(dtype)
    model.config.use_cache = True
    for key, value in facts.items():
        setattr(model.config, key, value)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
        for file in temporary.glob("*.safetensors"):
            shutil.copymode(temporary / "config.json", file)  # safetensors lets nobody but the owner read its files
        copy_contents(tokenizer_folder, temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
    except (OSError, SafetensorError) as error:  # the latter where safetensors' own code cannot write
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(str(output), f"cannot be written ({first_line(error)})", "make room, or name another") from None


def _read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the model by name, fp32, gathered from all ranks' files."""
    # DeepSpeed prints six lines about shards, and its bars are one endless line in a log file.
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with redirect_stdout(io.StringIO()), bars:
            state: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint.parent), tag=checkpoint.name
            )
    except Exception as error:  # a file that is missing, cut or no pickle makes a dozen kinds
        problem = f"cannot be read ({first_line(error)})"
        raise RunError(str(checkpoint), problem, "restore its files from a copy, or choose another step") from None
    return state


def _model_with(state: Mapping[str, torch.Tensor], config: Any, checkpoint: Path) -> Any:
    """The model with these weights."""
    model = AutoModelForCausalLM.from_config(config)
    remedy = "restore the run's config.json, or choose another step"
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a tensor of another shape
        problem = str(error).splitlines()[-1].strip()
        raise RunError(str(checkpoint), f"does not fit the model of config.json ({problem})", remedy) from None
    # Tied weights are stored once; tying again after loading gives the second name its tensor back.
    model.tie_weights()
    lost = sorted(set(missing) - set(getattr(model, "all_tied_weights_keys", {})))
    if lost or unexpected:
        problem = f"{len(lost)} tensors are missing, {len(unexpected)} too many; {[*lost, *unexpected][0]} is the first"
        raise RunError(str(checkpoint), f"does not fit the model of config.json: {problem}", remedy)
    return model
