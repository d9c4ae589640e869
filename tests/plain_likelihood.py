"""The likelihood of windows as one writes it by hand, which the evaluation is held against."""

from typing import Any

import torch


def negative_log_likelihood(model: Any, windows: torch.Tensor) -> float:
    """Nats that the model needs for all but the first token of each window, [batch, length], summed in fp64."""
    with torch.inference_mode():
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits.double()
        return float(-logits.log_softmax(-1).gather(2, windows[:, 1:, None]).sum())
