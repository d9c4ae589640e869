"""A DeepSpeed checkpoint as a Hugging Face folder, on one process and without the training machine."""

import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from transformers import AutoModelForCausalLM


def export_checkpoint(
    checkpoint: Path,
    config: Any,
    facts: Mapping[str, Any],
    tokenizer_folder: Path,
    card: str,
    output: Path,
    dtype: torch.dtype = torch.float32,
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
    """
    with redirect_stdout(io.StringIO()):  # six lines about shards
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    model = AutoModelForCausalLM.from_config(config)
    # Tied weights are stored once; tying again after loading gives the second name its tensor back.
    missing, unexpected = model.load_state_dict(state, strict=False)
    model.tie_weights()
    if unexpected or set(missing) - set(getattr(model, "all_tied_weights_keys", {})):
        raise RuntimeError(f"{checkpoint} does not fit the model: missing {missing}, unexpected {unexpected}")
    model.to(dtype)
    model.config.use_cache = True
    for key, value in facts.items():
        setattr(model.config, key, value)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    shutil.copytree(tokenizer_folder, temporary, dirs_exist_ok=True)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
