"""Causal language models from transformers, initialised as transformers does, also under ZeRO-3."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from doge_ds.errors import ConfigError, nearest

# What transformers and torch raise where a model cannot be built from its settings.
BUILD_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    RuntimeError,
    StrictDataclassError,
)


def model_config(settings: Mapping[str, Any], vocabulary_size: int, end_of_text_id: int, sequence_length: int) -> Any:
    """The transformers configuration that the `model` section of a run configuration means.

    What it leaves open: vocab_size and the special tokens come from the store, every dropout is 0 (GPT-2's default in
    transformers is 0.1), and the model has as many positions as a training sequence has tokens.

    Raises:
        ConfigError: a model_type that is no causal language model, a key that this model does not have, a value that
            transformers refuses, another vocab_size than the store's, or fewer positions than sequence_length.
    """
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = nearest(str(model_type), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError("model.model_type", f"{model_type!r} is no causal language model", near)
    defaults = AutoConfig.for_model(model_type)
    known = set(defaults.to_dict()) | set(defaults.attribute_map)
    for key in settings:
        if key not in known:
            raise ConfigError(f"model.{key}", f"{model_type} has no such setting", nearest(key, known))
    settings = {defaults.attribute_map.get(key, key): value for key, value in settings.items()}
    if settings.setdefault("vocab_size", vocabulary_size) != vocabulary_size:
        problem = f"is {settings['vocab_size']}, but the store's tokenizer has {vocabulary_size} tokens"
        raise ConfigError("model.vocab_size", problem, "delete it: it comes from the store")
    positions = defaults.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    given = settings.setdefault(positions, sequence_length) if positions in known else sequence_length
    if not isinstance(given, int) or given < sequence_length:
        problem = f"is {given!r}, not at least data.sequence_length {sequence_length}"
        raise ConfigError(f"model.{positions}", problem, "delete it, or make it as large")
    for key, value in defaults.to_dict().items():
        if re.search(r"drop", key) and isinstance(value, int | float):
            settings.setdefault(key, 0.0)
    tokens = {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id, "pad_token_id": None, "use_cache": False}
    return _checked(model_type, {**tokens, **settings})


def _checked(model_type: str, settings: Mapping[str, Any]) -> Any:
    """The configuration, after a model was built from it on the meta device, where it costs no memory."""
    try:
        config = AutoConfig.for_model(model_type, **settings)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ConfigError("model", f"transformers refuses it ({reason})", "see its page on this model type") from None
    return config


def parameter_count(config: Any) -> int:
    """Parameters of a model of this configuration, tied ones counted once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def build_model(config: Any, deepspeed_config: dict[str, Any], seed: int) -> torch.nn.Module:
    """A freshly initialised model on this rank; under ZeRO-3 only this rank's part of it.

    HfDeepSpeedConfig must be alive while transformers builds: then it initialises partitioned tensors as it does whole
    ones. Inside a bare `deepspeed.zero.Init` it skips that in silence (GPT-2's embeddings get a deviation of 1.00
    instead of 0.02).
    """
    alive = HfDeepSpeedConfig(deepspeed_config) if deepspeed_config["zero_optimization"]["stage"] == 3 else None
    torch.manual_seed(seed)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    del alive
    return model


def sequence_losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss of each sequence on its last `sequence_length - 1` tokens, [batch, sequence_length] -> [batch], fp32.

    The last token is not fed: its prediction would have no label. All sequences have the same length, so the mean of
    these means is the mean over tokens.
    """
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1).mean(dim=1)
