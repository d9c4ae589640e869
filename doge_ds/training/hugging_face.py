"""A DeepSpeed checkpoint as a Hugging Face folder, on one process and without the training machine."""

import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from transformers import AutoModelForCausalLM


def export_checkpoint(
    checkpoint: Path, config: Any, facts: Mapping[str, Any], tokenizer_folder: Path, output: Path
) -> None:
    """Write `output`: safetensors in fp32, config.json and the tokenizer; in one piece or not at all.

    Args:
        checkpoint: folder of one DeepSpeed checkpoint, ZeRO-2 or ZeRO-3, of any number of ranks.
        config: the transformers configuration that the model was built from.
        facts: further keys for config.json, for those who evaluate the model.
        tokenizer_folder: the store's.
        output: the new folder; replaced where it exists.
    """
    with redirect_stdout(io.StringIO()):  # six lines about shards
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    model = AutoModelForCausalLM.from_config(config)
    # Tied weights are stored once; tying again after loading gives the second name its tensor back.
    missing, unexpected = model.load_state_dict(state, strict=False)
    model.tie_weights()
    if unexpected or set(missing) - set(getattr(model, "all_tied_weights_keys", {})):
        raise RuntimeError(f"{checkpoint} does not fit the model: missing {missing}, unexpected {unexpected}")
    model.config.use_cache = True
    for key, value in facts.items():
        setattr(model.config, key, value)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    shutil.copytree(tokenizer_folder, temporary, dirs_exist_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
