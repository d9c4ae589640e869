"""What is ours and not the paper's, in float64 and plain loops: subsets of domains, rare updates, selected tensors.

Built on tests/reference_doge.py; shares no function with the product.
"""

import math
from collections.abc import Callable

import torch

from tests.reference_doge import Gradient, clipped, inner, learning_rate, mean_token_loss, new_weights


def estimated_scores(
    train: dict[int, Gradient], others: list[Gradient], domains: int, target: str | list[int], normalize: str
) -> dict[int, float]:
    """W_j before clipping for the domains that are there; the absent ones' share of a sum is that of those present."""
    mean_norm = sum(math.sqrt(inner(g, g)) for g in train.values()) / len(train)
    found = {}
    for j, gradient in train.items():
        if target in ("all", "others"):
            rest = sum(inner(gradient, train[i]) for i in train if i != j)
            rest *= (domains - 1) / (len(train) - 1)
            total = rest + (inner(gradient, gradient) if target == "all" else 0.0)
        else:
            total = sum(inner(gradient, other) for other in others)
        found[j] = total / mean_norm if normalize == "mean_gradient_norm" else total
    return found


def fill(scores: dict[int, float], last: dict[int, tuple[float, int]], domains: int, decay: float) -> list[float]:
    """Absent domains: the last score, drawn to the mean of those present by `decay` for each update since."""
    mean = sum(scores.values()) / len(scores)
    filled = []
    for j in range(domains):
        if j in scores:
            filled.append(scores[j])
        elif j in last:
            score, age = last[j]
            filled.append(mean + decay**age * (score - mean))
        else:
            filled.append(mean)
    return filled


def train(
    model: torch.nn.Module,
    batches: Callable[[int], tuple[dict[int, torch.Tensor], bool]],
    domains: int,
    settings: dict,
) -> dict[str, list]:
    """Train `model` (float64).

    Args:
        batches: step -> (row number -> [sequences, length] tokens of the rows that the step has, whether it updates).
        domains: train domains; rows from here on are targets.
        settings: as for the reference; decay of absent scores, selection (steps, tensors) or None.
    """
    s = settings
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    groups = [[p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]]
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": d} for group, d in zip(groups, (s["weight_decay"], 0.0), strict=True)],
        lr=s["peak"],
        betas=s["betas"],
        eps=s["eps"],
    )
    weights, last, effects = [1 / domains] * domains, {}, [0.0] * len(parameters)
    chosen = list(range(len(parameters)))
    history: dict[str, list] = {"weights": [], "scores": [], "effects": [], "chosen": []}
    for step in range(s["steps"]):
        rate = learning_rate(step, s["steps"], s["warmup"], s["peak"], s["smallest"])
        rows, is_update = batches(step)
        gradients: dict[int, Gradient] = {
            row: [g.detach() for g in torch.autograd.grad(mean_token_loss(model, tokens), parameters)]
            for row, tokens in rows.items()
        }
        present = [row for row in rows if row < domains]
        if is_update:
            gradients = {row: clipped(gradient, s["clip_domain_gradients"]) for row, gradient in gradients.items()}
            parts = {row: [gradient[p] for p in chosen] for row, gradient in gradients.items()}
            others = [parts[row] for row in rows if row >= domains]
            found = estimated_scores({j: parts[j] for j in present}, others, domains, s["target"], s["normalize"])
            if s["clip"]:
                found = {j: min(max(score, s["clip"][0]), s["clip"][1]) for j, score in found.items()}
            scores = fill(found, last, domains, s["decay"])
            last = {j: (score, age + 1) for j, (score, age) in last.items()} | {j: (found[j], 1) for j in present}
            weights = new_weights(weights, scores, s["step_size"] or rate, s["mu"], s["divergence"], s["smoothing"])
            history["scores"].append(scores)
        factor = domains / len(present)
        total = [sum(factor * weights[j] * gradients[j][p] for j in present) for p in range(len(parameters))]
        before = [p.detach().clone() for p in parameters]
        for parameter, gradient in zip(parameters, clipped(total, s["clipping"]), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        if s["selection"] and step < s["selection"]["steps"]:
            for p, parameter in enumerate(parameters):
                change = float((parameter.detach() - before[p]).norm())
                effects[p] += float(total[p].norm()) / change if change > 0 else 0.0
            if step + 1 == s["selection"]["steps"]:
                count = s["selection"]["tensors"]
                order = sorted(range(len(parameters)), key=lambda p: effects[p] if count > 0 else -effects[p])
                chosen = sorted(order[: abs(count)])
                history["effects"], history["chosen"] = effects, [named[p][0] for p in chosen]
        history["weights"].append(weights)
    return history
