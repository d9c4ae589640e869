"""Model and configuration to a DeepSpeed engine."""

from typing import Any

import deepspeed
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from doge_ds.config_sections import TrainingConfig
from doge_ds.errors import ConfigError


def cut_into_micro_batches(key: str, sequences: int, micro_batch_size: int | None, world_size: int) -> tuple[int, int]:
    """How a step's sequences are cut: (micro-batch size, micro-batches on each rank).

    Args:
        key: the run configuration's key of `sequences`, for the message.
        sequences: of one step, over all ranks.
        micro_batch_size: None for all that a rank gets.

    Raises:
        ConfigError: the ranks and micro-batches do not divide the sequences; the message has the values that would do.
    """
    unit = world_size * (micro_batch_size or 1)
    if sequences % unit == 0:
        size = micro_batch_size or sequences // world_size
        return size, sequences // (world_size * size)
    cut = f"{world_size} ranks" + (f" x micro-batches of {micro_batch_size}" if micro_batch_size else "")
    below, above = sequences // unit * unit, (sequences // unit + 1) * unit
    would_do = f"{below} or {above}" if below else f"{above}"
    raise ConfigError(f"training.{key}", f"{sequences} cannot be divided by {cut}", f"{would_do} would do")


def start_engine(
    model: torch.nn.Module, deepspeed_config: dict[str, Any], training: TrainingConfig
) -> deepspeed.DeepSpeedEngine:
    """The engine, with AdamW in two parameter groups and transformers' schedule cosine_with_min_lr.

    Raises:
        ConfigError: the model cannot be compiled here.
    """
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, training.weight_decay, training.decay_embeddings),
        config=deepspeed_config,
        lr_scheduler=lambda optimizer: get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, training.warmup_steps, training.steps, min_lr=training.min_learning_rate
        ),
    )
    if training.compile:
        try:
            engine.compile()
        except RuntimeError as error:  # this torch cannot, on this Python or system
            raise ConfigError("training.compile", f"cannot be used here ({error})", "turn it off") from None
    return engine


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Matrices decay, and embeddings where that is wanted; norms and biases, which have one dimension, do not.

    An output layer that is tied to the embeddings is one tensor with them and goes with them.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Under ZeRO-3 the parameter itself is an empty shell; DeepSpeed keeps its shape beside it.
            is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
            decays = is_matrix and (decay_embeddings or id(parameter) not in embeddings)
            (decayed if decays else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
