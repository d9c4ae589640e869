"""DoGE written straight from the paper (arXiv 2310.15393, Algorithm 1), in float64, in one process, without DeepSpeed.

Shares no function with the product. Plain loops over domains and parameters; slow and obvious on purpose.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

Gradient = list[torch.Tensor]


def inner(left: Gradient, right: Gradient) -> float:
    return sum(float((a * b).sum()) for a, b in zip(left, right, strict=True))


def clipped(gradient: Gradient, largest: float | None) -> Gradient:
    norm = math.sqrt(inner(gradient, gradient))
    if largest is None or norm <= largest:
        return gradient
    return [tensor * (largest / norm) for tensor in gradient]


def scores(
    train: Sequence[Gradient], others: Sequence[Gradient], target: str | list[int], normalize: str, clip: tuple | None
) -> list[float]:
    """W_j for every train domain. `target`: "all", "others", "mix" (the one gradient in `others`), or row numbers."""
    rows = [*train, *others]
    norms = [math.sqrt(inner(row, row)) for row in rows]
    found = []
    for j in range(len(train)):
        if target == "all":
            chosen = list(range(len(train)))
        elif target == "others":
            chosen = [i for i in range(len(train)) if i != j]
        elif target == "mix":
            chosen = [len(train)]
        else:
            chosen = list(target)
        total = 0.0
        for i in chosen:
            product = inner(rows[j], rows[i])
            total += product / (norms[j] * norms[i]) if normalize == "cosine" else product
        if normalize == "mean_gradient_norm":
            total /= sum(norms[: len(train)]) / len(train)
        if clip is not None:
            total = min(max(total, clip[0]), clip[1])
        found.append(total)
    return found


def new_weights(
    weights: Sequence[float], score: Sequence[float], step_size: float, mu: float, divergence: str, smoothing: float
) -> list[float]:
    if divergence == "kl":
        grown = [a * math.exp(step_size * w / mu) for a, w in zip(weights, score, strict=True)]
        moved = [a / sum(grown) for a in grown]
    else:
        moved = nearest_point([a + step_size * w / mu for a, w in zip(weights, score, strict=True)])
    return [(1 - smoothing) * a + smoothing / len(weights) for a in moved]


def nearest_point(point: Sequence[float]) -> list[float]:
    """Projection onto the simplex: bisection on the shift that makes the positive parts sum to 1."""
    low, high = min(point) - 1.0, max(point)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(max(value - middle, 0.0) for value in point) > 1:
            low = middle
        else:
            high = middle
    return [max(value - high, 0.0) for value in point]


def learning_rate(step: int, steps: int, warmup: int, peak: float, smallest: float) -> float:
    """Linear warm-up from 0, then half a cosine down to `smallest` at `steps`."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    return smallest + (peak - smallest) * 0.5 * (1 + math.cos(math.pi * progress))


def mean_token_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean of -log p(token | tokens before it) over all but the first token of each sequence."""
    probabilities = torch.log_softmax(model(input_ids=tokens).logits[:, :-1].double(), dim=-1)
    return -probabilities.gather(2, tokens[:, 1:].unsqueeze(2)).mean()


def train(
    model: torch.nn.Module,
    batches: Callable[[int], list[torch.Tensor]],
    train_domains: int,
    settings: dict,
) -> dict[str, list]:
    """Train `model` (float64) with DoGE.

    Args:
        batches: step -> one [sequences, length] token tensor per row, train domains first.
        settings: steps, warmup, peak, smallest, weight_decay, clipping, betas, eps; target, clip_domain_gradients,
            normalize, clip, mu, step_size, divergence, smoothing.

    Returns:
        per step "weights" and "losses" and "gram"; "mean" of the weights.
    """
    s = settings
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": s["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=s["peak"],
        betas=s["betas"],
        eps=s["eps"],
    )
    weights = [1 / train_domains] * train_domains
    history: dict[str, list] = {"weights": [], "losses": [], "gram": []}
    for step in range(s["steps"]):
        rate = learning_rate(step, s["steps"], s["warmup"], s["peak"], s["smallest"])
        gradients, losses = [], []
        for tokens in batches(step):
            loss = mean_token_loss(model, tokens)
            gradients.append([g.detach() for g in torch.autograd.grad(loss, parameters)])
            losses.append(loss.item())
        history["gram"].append([[inner(a, b) for b in gradients] for a in gradients])
        gradients = [clipped(gradient, s["clip_domain_gradients"]) for gradient in gradients]
        found = scores(gradients[:train_domains], gradients[train_domains:], s["target"], s["normalize"], s["clip"])
        weights = new_weights(weights, found, s["step_size"] or rate, s["mu"], s["divergence"], s["smoothing"])
        total = [sum(weights[j] * gradients[j][p] for j in range(train_domains)) for p in range(len(parameters))]
        for parameter, gradient in zip(parameters, clipped(total, s["clipping"]), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        history["weights"].append(weights)
        history["losses"].append(losses)
    history["mean"] = np.mean(history["weights"], axis=0).tolist()
    return history
