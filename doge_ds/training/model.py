"""Causal language models from transformers, initialised as transformers does, also under ZeRO-3."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from doge_ds.config_sections import TrainingConfig
from doge_ds.errors import ConfigError, ModelError, nearest
from doge_ds.model_files import NO_PROGRAMS, ONLY_NUMBERS, check_implementations, check_model_folder, loading_error

MOST_LAYERS = 1000  # building GPT-2 with 2,000 on the meta device took 16 s on 2 cores
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


def model_config(
    settings: Mapping[str, Any],
    vocabulary_size: int,
    end_of_text_id: int,
    sequence_length: int,
    *,
    tokenizer_sha256: str | None = None,
) -> Any:
    """The transformers configuration that the `model` section of a run configuration means.

    What it leaves open: vocab_size and the special tokens come from the store, every dropout is 0 (GPT-2's default in
    transformers is 0.1), and the model has as many positions as a training sequence has tokens. With `pretrained`
    everything else that it leaves open is as it is there.

    Args:
        settings: the section.
        vocabulary_size: of the store's tokenizer.
        end_of_text_id: of the store's tokenizer.
        sequence_length: tokens of a training sequence.
        tokenizer_sha256: of the store's tokenizer; None leaves it unchecked that `pretrained` was trained with it.

    Raises:
        ConfigError: a model that is no causal language model of text, a key that this model does not have, a value that
            transformers refuses, another tokenizer or vocab_size than the store's, or fewer positions than
            sequence_length.
        ModelError: `pretrained` is no model.
    """
    settings = dict(settings)
    if "pretrained" in settings:
        name = settings.pop("pretrained")
        found = _pretrained_config(name, settings)
        _refuse_other_tokens(found, vocabulary_size, sequence_length, tokenizer_sha256)
        settings = {**_special_tokens(end_of_text_id), **_without_dropout(found), **settings}
        return _checked(lambda: AutoConfig.from_pretrained(name, **NO_PROGRAMS, **settings))
    model_type = settings.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = nearest(str(model_type), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError("model.model_type", f"{model_type!r} is no causal language model", near)
    defaults = AutoConfig.for_model(model_type)
    _refuse_what_is_not_text("model.model_type", defaults)
    known = _refuse_unknown_keys(defaults, settings)
    settings = {defaults.attribute_map.get(key, key): value for key, value in settings.items()}
    if settings.setdefault("vocab_size", vocabulary_size) != vocabulary_size:
        problem = f"is {settings['vocab_size']}, but the store's tokenizer has {vocabulary_size} tokens"
        raise ConfigError("model.vocab_size", problem, "delete it: it comes from the store")
    positions = defaults.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    given = settings.setdefault(positions, sequence_length) if positions in known else sequence_length
    if not isinstance(given, int) or given < sequence_length:
        problem = f"is {given!r}, not at least data.sequence_length {sequence_length}"
        raise ConfigError(f"model.{positions}", problem, "delete it, or make it as large")
    settings = {**_special_tokens(end_of_text_id), **_without_dropout(defaults), **settings}
    return _checked(lambda: AutoConfig.for_model(model_type, **settings))


def _pretrained_config(name: Any, settings: Mapping[str, Any]) -> Any:
    """The configuration of a model to start from, as it is there: one of text, that has all keys of `settings`."""
    remedy = "give a Hugging Face folder, or a name on the hub"
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("model.pretrained", f"{name!r} is no model's name", remedy)
    if "model_type" in settings:
        raise ConfigError("model.model_type", "comes from model.pretrained", "delete one of the two")
    check_model_folder(f"model.pretrained {name!r}", Path(name))
    try:
        found = AutoConfig.from_pretrained(name, **NO_PROGRAMS)
    except (OSError, *BUILD_ERRORS) as error:
        raise loading_error("model.pretrained", repr(name), error, remedy) from None
    if "attn_implementation" not in settings:  # the user's own is what the user asked for
        check_implementations("model.pretrained", found)
    _refuse_what_is_not_text("model.pretrained", found)
    _refuse_unknown_keys(found, settings)
    return found


def _refuse_other_tokens(found: Any, vocabulary_size: int, length: int, tokenizer_sha256: str | None) -> None:
    """Raises ConfigError where the store's ids mean other tokens to the model, or are too many for it."""
    remedy = "prepare the text with the model's own tokenizer"
    trained_with = getattr(found, "doge_ds_tokenizer_sha256", None)  # models of ours say so
    if None not in (trained_with, tokenizer_sha256) and trained_with != tokenizer_sha256:
        raise ConfigError("model.pretrained", "was trained with another tokenizer than the store's", remedy)
    # A vocabulary may be padded to a rounder number than its tokenizer has tokens; ids beyond those never come up.
    if found.vocab_size < vocabulary_size:
        problem = f"has a vocabulary of {found.vocab_size}, the store's tokenizer one of {vocabulary_size}"
        raise ConfigError("model.pretrained", problem, remedy)
    positions = getattr(found, "max_position_embeddings", None)  # None also where a model has no limit
    if positions is not None and positions < length:
        problem = f"{length} does not fit the model, which has {positions} positions"
        raise ConfigError("data.sequence_length", problem, f"give {positions} or less")


def _refuse_what_is_not_text(where: str, config: Any) -> None:
    """Raises ConfigError for a model without text, and for one of text and images, whose text model lies inside it.

    The vocabulary and special tokens of such a model are not where the store's are written.
    """
    try:
        text = config.get_text_config()
    except ValueError:  # it has several
        text = None
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and text is config:
        return
    inner = getattr(text, "model_type", None)
    remedy = f"its text model is {inner!r}" if inner in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "take one of text"
    raise ConfigError(where, f"{config.model_type!r} is no causal language model of text alone", remedy)


def _refuse_unknown_keys(config: Any, keys: Iterable[str]) -> set[str]:
    """Keys that a model of this type has. Raises ConfigError for one among `keys` that it does not have."""
    known = {*config.to_dict(), *config.attribute_map, "attn_implementation"}
    for key in keys:
        if key not in known:
            raise ConfigError(f"model.{key}", f"{config.model_type} has no such setting", nearest(key, known))
    return known


def _special_tokens(end_of_text_id: int) -> dict[str, Any]:
    return {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id, "pad_token_id": None, "use_cache": False}


def _without_dropout(config: Any) -> dict[str, float]:
    """Every dropout that a model of this type has, as 0."""
    dropouts = (key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, int | float))
    return dict.fromkeys(dropouts, 0.0)


def _checked(make_config: Callable[[], Any]) -> Any:
    """The configuration, after a model was built from it on the meta device, where it costs no memory."""
    try:
        config = make_config()
        _refuse_too_many_layers(config)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ConfigError("model", f"transformers refuses it ({reason})", "see its page on this model type") from None
    return config


def _refuse_too_many_layers(config: Any) -> None:
    """Raises ConfigError: even on the meta device a layer takes its time, and a slip of the finger would take days."""
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ConfigError("model", f"has {layers} layers", f"give at most {MOST_LAYERS}")


def parameter_count(config: Any) -> int:
    """Parameters of a model of this configuration, tied ones counted once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def flops_per_token(config: Any, sequence_length: int) -> float | None:
    """Floating-point operations of training on one token, the sum of both `flops_parts`."""
    parts = flops_parts(config, sequence_length)
    return None if parts is None else sum(parts)


def flops_parts(config: Any, sequence_length: int) -> tuple[float, float] | None:
    """Operations of training on one token: 6 N and, of attention, 12 L H Q T (PaLM, arXiv 2204.02311, appendix B).

    N: parameters that a token is multiplied with, so no embedding tables but the output layer, tied or not; L layers of
    H heads of size Q; T tokens in a sequence, as if attention were not causal. What gradient checkpointing computes
    twice is not counted. None for mixtures of experts, where a token meets a part of the parameters only, and for
    models without attention heads.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config = config.get_text_config()
    if any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    layers, heads = (getattr(config, key, None) for key in ("num_hidden_layers", "num_attention_heads"))
    output = model.get_output_embeddings()
    if layers is None or heads is None or output is None:
        return None
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    multiplied = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)
    if id(output.weight) in tables:
        multiplied += output.weight.numel()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(6 * multiplied), float(12 * layers * heads * head_size * sequence_length)


def build_model(
    config: Any, deepspeed_config: dict[str, Any], training: TrainingConfig, pretrained: str | None
) -> torch.nn.Module:
    """The model on this rank, freshly initialised or as `pretrained` has it; under ZeRO-3 only this rank's part of it.

    HfDeepSpeedConfig must be alive while transformers builds: then it initialises partitioned tensors as it does whole
    ones. Inside a bare `deepspeed.zero.Init` it skips that in silence (GPT-2's embeddings get a deviation of 1.00
    instead of 0.02).

    Raises:
        ModelError: `pretrained` lacks tensors of the model, or cannot be read.
    """
    alive = HfDeepSpeedConfig(deepspeed_config) if deepspeed_config["zero_optimization"]["stage"] == 3 else None
    torch.manual_seed(training.seed)
    model: torch.nn.Module
    if pretrained is None:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = load_pretrained(config, pretrained)
    del alive
    if training.gradient_checkpointing:
        checkpoint_gradients(model)
    return model.train()  # from_pretrained gives it for evaluation


def load_pretrained(config: Any, name: str, where: str = "model.pretrained") -> Any:
    """The weights of a Hugging Face model, in fp32, all of them or an error.

    Raises:
        ModelError: it lacks tensors of the model, or cannot be read; `where` is the key or option that names it.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **ONLY_NUMBERS
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise loading_error(where, repr(name), error, "export it again, or take another") from None
    # transformers fills what the files lack with random numbers and goes on.
    if lost := sorted(found["missing_keys"]):
        problem = f"{name!r} lacks {len(lost)} of the model's tensors: {lost[0]} is the first"
        raise ModelError(where, problem, "export it again, or take another")
    return model


def checkpoint_gradients(model: Any) -> None:
    """Recompute each layer's activations in the backward pass. Raises ConfigError where the model cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5; the old name works until 6
            model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError("training.gradient_checkpointing", reason, "turn it off for this model") from None


def sequence_losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss of each sequence on its last `sequence_length - 1` tokens, [batch, sequence_length] -> [batch], fp32.

    All sequences have the same length, so the mean of these means is the mean over tokens.

    Raises:
        ConfigError: as `token_losses` does.
    """
    return token_losses(model, tokens).mean(dim=1)


def token_losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of every token but each sequence's first, [batch, sequence_length] -> [batch, sequence_length - 1], fp32.

    The last token is not fed: its prediction would have no label.

    Raises:
        ConfigError: the model shall be compiled, which is tried here first, and cannot be on this machine.
    """
    try:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    except torch._dynamo.exc.BackendCompilerFailed as error:  # without a C++ compiler, for one; imported only here
        reason = str(error).partition("\n")[0]
        raise ConfigError("training.compile", f"cannot be used here ({reason})", "turn it off") from None
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)
