"""The reference model of DoReMi (arXiv 2305.10429): whole on every rank, measured and never trained."""

from typing import Any

import torch

from doge_ds.errors import ConfigError, DogeError
from doge_ds.training.model import load_pretrained, model_config, token_losses


def reference_config(
    name: str | None, vocabulary_size: int, end_of_text_id: int, sequence_length: int, tokenizer_sha256: str
) -> Any:
    """The transformers configuration of a Hugging Face folder or name; its weights are not read yet.

    Raises:
        ConfigError: none was named, or it was trained with another tokenizer than the store's, or has too few
            positions or tokens.
        ModelError: it is no model.
    """
    if name is None:
        remedy = "train one with train_base.py, and name it in doremi.reference, or train_proxy.py's --reference"
        raise ConfigError("method doremi", "needs a reference model", remedy)
    try:
        return model_config(
            {"pretrained": name}, vocabulary_size, end_of_text_id, sequence_length, tokenizer_sha256=tokenizer_sha256
        )
    except DogeError as error:
        where, problem, remedy = error.args
        raise type(error)(f"--reference {name}", f"{where}: {problem}", remedy) from None


def load_reference(config: Any, name: str, engine: Any) -> torch.nn.Module:
    """The model for `excess_losses`, on the proxy's device and in the precision in which that computes.

    Args:
        config: as `reference_config` gives it.
        name: a Hugging Face folder or name.
        engine: the proxy's.

    Raises:
        ModelError: it lacks tensors, or cannot be read.
    """
    model: torch.nn.Module = load_pretrained(config, name, "--reference")
    return model.to(engine.device, next(engine.module.parameters()).dtype).eval().requires_grad_(False)


def excess_losses(losses: torch.Tensor, reference: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean of max(loss - the reference's loss, 0) over all tokens, a scalar: clipped token by token, then averaged.

    Args:
        losses: the proxy's, [batch, sequence_length - 1].
        tokens: [batch, sequence_length].
    """
    with torch.no_grad():
        return (losses.detach() - token_losses(reference, tokens)).clamp(min=0).mean()
