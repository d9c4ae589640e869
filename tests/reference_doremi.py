"""DoReMi straight from the paper (arXiv 2305.10429, Algorithm 1), in float64, in one process, without DeepSpeed.

Shares no function with the product. Plain loops over domains, sequences and tokens; slow and obvious on purpose.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from tests.reference_doge import learning_rate


def token_losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """-log p(token | tokens before it), [sequences, length - 1]."""
    probabilities = torch.log_softmax(model(input_ids=tokens).logits[:, :-1].double(), dim=-1)
    return -probabilities.gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2)


def excess(losses: torch.Tensor, reference_losses: torch.Tensor) -> float:
    """lambda of one domain: the sum over its tokens of max(loss - reference's loss, 0), by the number of its tokens."""
    total, count = 0.0, 0
    for ours, theirs in zip(losses.flatten().tolist(), reference_losses.flatten().tolist(), strict=True):
        total += max(ours - theirs, 0.0)
        count += 1
    return total / count


def new_weights(weights: list[float], excesses: list[float], step_size: float, smoothing: float) -> list[float]:
    grown = [a * math.exp(step_size * value) for a, value in zip(weights, excesses, strict=True)]
    return [(1 - smoothing) * a / sum(grown) + smoothing / len(weights) for a in grown]


def train(
    model: torch.nn.Module,
    reference: torch.nn.Module,
    batches: Callable[[int], list[torch.Tensor]],
    domains: int,
    settings: dict,
) -> dict[str, list]:
    """Train `model` (float64) by group DRO against `reference` (float64).

    Args:
        batches: step -> one [sequences, length] token tensor per domain.
        settings: steps, warmup, peak, smallest, weight_decay, clipping, betas, eps; step_size, smoothing.

    Returns:
        per step "weights", "losses", "excess", and "clipped_mean", which the excess would be if not each token but a
        domain's mean were clipped; "mean" of the weights.
    """
    s = settings
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": s["weight_decay"]},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=s["peak"],
        betas=s["betas"],
        eps=s["eps"],
    )
    weights = [1 / domains] * domains
    history: dict[str, list] = {"weights": [], "losses": [], "excess": [], "clipped_mean": []}
    for step in range(s["steps"]):
        tokens_of = batches(step)
        losses = [token_losses(model, tokens) for tokens in tokens_of]
        with torch.no_grad():
            theirs = [token_losses(reference, tokens) for tokens in tokens_of]
            excesses = [excess(*each) for each in zip(losses, theirs, strict=True)]
            means = [max((ours - other).mean().item(), 0.0) for ours, other in zip(losses, theirs, strict=True)]
        weights = new_weights(weights, excesses, s["step_size"], s["smoothing"])
        objective = sum(a * ours.mean() for a, ours in zip(weights, losses, strict=True))
        optimizer.zero_grad()
        objective.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))
        if norm > s["clipping"]:
            for parameter in parameters:
                parameter.grad *= s["clipping"] / norm
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, s["steps"], s["warmup"], s["peak"], s["smallest"])
        optimizer.step()
        history["weights"].append(weights)
        history["losses"].append([ours.mean().item() for ours in losses])
        history["excess"].append(excesses)
        history["clipped_mean"].append(means)
    history["mean"] = np.mean(history["weights"], axis=0).tolist()
    return history
