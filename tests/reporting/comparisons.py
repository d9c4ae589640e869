"""Small summaries of comparisons in the documented format (docs/formats.md), without a training run."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

DOMAINS = ("python", "prose", "yaml", "manuals", "news")
METHODS: dict[str, str | None] = {
    "uniform": None,
    "natural": None,
    "doge": "doge",
    "doremi": "doremi",
    "mu 0.1": "doge",
}
# Nats that a mixture's bases gain on average, and how far one seed strays: 3 seeds show the first and the last of them.
EFFECTS = {"uniform": 0.0, "natural": 0.0831, "doge": -0.0417, "doremi": -0.0029}
NOISE = 0.0061


def estimate(values: Mapping[int, float | None]) -> dict[str, Any]:
    """Numbers by seed with their mean and 95% Student interval; no mean where one of them is no number."""
    known = [value for value in values.values() if value is not None]
    mean = float(np.mean(known)) if known and len(known) == len(values) else None
    found: dict[str, Any] = {"by_seed": {str(seed): value for seed, value in values.items()}}
    if mean is None or len(known) < 2:
        return found | {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known)))
    return found | {"mean": mean, "low": mean - half, "high": mean + half}


def summary_of(
    name: str = "small",
    domains: Sequence[str] = DOMAINS,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Mapping[str, str | None] = METHODS,
    without_bases: Sequence[str] = ("mu 0.1",),
    groups: Mapping[str, Sequence[str]] | None = None,
    tasks: Sequence[str] = (),
    steps: Sequence[int] = range(10, 601, 10),
    effects: Mapping[str, float] = EFFECTS,
) -> dict[str, Any]:
    """A finished comparison; the first mixture is the one that others are compared with."""
    against = next(iter(methods))
    generator = np.random.default_rng(7)
    groups = groups or {"all": domains}
    weights = {mixture: _weights(domains, seeds, method, generator) for mixture, method in methods.items()}
    measured = _log_perplexities(
        [mixture for mixture in methods if mixture not in without_bases], domains, seeds, effects, generator
    )
    mixtures = {}
    for number, (mixture, method) in enumerate(methods.items()):
        found = {
            "against": against,
            "method": method,
            "mixture": None if method else mixture,
            "weights": {domain: estimate(values) for domain, values in weights[mixture].items()},
            **_learned(domains, seeds, method, weights[mixture], generator, steps),
            **_measured(measured.get(mixture), measured.get(against, {}), groups, mixture == against),
            "cost": _cost(method, mixture in measured, number),
            "accuracy": _accuracy(tasks, seeds, generator) if tasks and mixture in measured else None,
            "stages": {str(seed): _places(mixture, method, mixture in measured, seed) for seed in seeds},
        }
        mixtures[mixture] = found
    return {
        "version": 1,
        "name": name,
        "against": against,
        "seeds": list(seeds),
        "machine": {"cores": 2, "devices": "cpu"},
        "complete": True,
        "groups": {group: list(members) for group, members in groups.items()},
        "mixtures": mixtures,
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """FOLDER/<name>/summary.json, as `doge-ds compare` lays it."""
    file = folder / summary["name"] / "summary.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(summary))
    return file


def _log_perplexities(
    mixtures: Sequence[str],
    domains: Sequence[str],
    seeds: Sequence[int],
    effects: Mapping[str, float],
    generator: np.random.Generator,
) -> dict[str, dict[str, dict[int, float]]]:
    """By mixture, domain and seed: a level of the domain, one of the seed that all mixtures share, what the mixture
    gains on average and in this domain, and noise."""
    level = {domain: 3.1 + 0.37 * number for number, domain in enumerate(domains)}
    in_domain = {domain: generator.normal(scale=0.02) for domain in domains}
    of_seed = {seed: generator.normal(scale=0.03) for seed in seeds}
    return {
        mixture: {
            domain: {
                seed: level[domain]
                + of_seed[seed]
                + effects.get(mixture, 0.013)
                + (in_domain[domain] if place else 0.0)
                + generator.normal(scale=NOISE)
                for seed in seeds
            }
            for domain in domains
        }
        for place, mixture in enumerate(mixtures)
    }


def _weights(
    domains: Sequence[str], seeds: Sequence[int], method: str | None, generator: np.random.Generator
) -> dict[str, dict[int, float]]:
    """Of a learned mixture other ones for each seed."""
    base = generator.dirichlet(np.full(len(domains), 4.0)) if method else np.full(len(domains), 1 / len(domains))
    found: dict[str, dict[int, float]] = {domain: {} for domain in domains}
    for seed in seeds:
        values = base * np.exp(generator.normal(scale=0.04 if method else 0.0, size=len(domains)))
        for domain, value in zip(domains, values / values.sum(), strict=True):
            found[domain][seed] = float(value)
    return found


def _learned(
    domains: Sequence[str],
    seeds: Sequence[int],
    method: str | None,
    weights: Mapping[str, Mapping[int, float]],
    generator: np.random.Generator,
    steps: Sequence[int],
) -> dict[str, Any]:
    by_seed = np.array([list(weights[domain].values()) for domain in domains])  # [domains, seeds]
    uniform = 1 / len(domains)
    distances = np.abs(by_seed - uniform).sum(axis=0) / 2
    found: dict[str, Any] = {
        "distance_from_uniform": estimate(dict(zip(seeds, distances.tolist(), strict=True))),
        "distance_from_against": estimate(dict(zip(seeds, (distances / 2).tolist(), strict=True))) if method else None,
        "stability": None,
        "last_weights": None,
        "gram_cosines": None,
        "warnings": [],
        "trajectory": None,
    }
    if method is None:
        return found
    pairs = [np.abs(by_seed[:, one] - by_seed[:, other]).sum() / 2 for one, other in combinations(range(len(seeds)), 2)]
    halves = {seed: float(value) for seed, value in zip(seeds, generator.uniform(0.01, 0.05, len(seeds)), strict=True)}
    path = by_seed[:, :1] + (uniform - by_seed[:, :1]) * np.exp(-np.array(steps) / 150)  # [domains, steps]
    noisy = np.abs(path + generator.normal(scale=0.01, size=path.shape))
    trajectory = {
        "steps": list(steps),
        "mean_weight": dict(zip(domains, path.tolist(), strict=True)),
        "weight": dict(zip(domains, (noisy / noisy.sum(axis=0)).tolist(), strict=True)),
    }
    gradients = generator.normal(size=(len(domains), 12)) + 0.4
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    return found | {
        "last_weights": {
            domain: estimate({seed: noisy[place, -1] * (1 + 0.02 * seed) for seed in seeds})
            for place, domain in enumerate(domains)
        },
        "stability": {"half_to_end": estimate(halves), "across_seeds": float(np.mean(pairs)) if pairs else None},
        "gram_cosines": {
            "rows": list(domains),
            "columns": list(domains),
            "values": (gradients @ gradients.T).tolist(),
        },
        "trajectory": trajectory,
    }


def _measured(
    found: Mapping[str, Mapping[int, float]] | None,
    reference: Mapping[str, Mapping[int, float]],
    groups: Mapping[str, Sequence[str]],
    is_reference: bool,
) -> dict[str, Any]:
    keys = ("log_perplexity", "average_log_perplexity", "worst_domain", "differences", "bits_per_byte")
    if found is None:
        return dict.fromkeys(keys)
    less = {
        domain: {seed: value - reference[domain][seed] for seed, value in values.items()}
        for domain, values in found.items()
    }
    logs = {domain: estimate(values) for domain, values in found.items()}
    differences = {domain: estimate(values) for domain, values in less.items()}
    worst = max(logs, key=lambda domain: logs[domain]["mean"])
    largest = max(differences, key=lambda domain: differences[domain]["mean"])
    return {
        "log_perplexity": logs,
        "average_log_perplexity": {group: _average(found, members) for group, members in groups.items()},
        "worst_domain": {
            "name": worst,
            "log_perplexity": logs[worst],
            "difference_name": None if is_reference else largest,
            "difference": None if is_reference else differences[largest],
        },
        "differences": None
        if is_reference
        else {
            "domains": differences,
            "groups": {group: _average(less, members) for group, members in groups.items()},
        },
        "bits_per_byte": {
            domain: estimate({seed: value / 3.7 / math.log(2) for seed, value in values.items()})
            for domain, values in found.items()
        },
    }


def _average(values: Mapping[str, Mapping[int, float]], members: Sequence[str]) -> dict[str, Any]:
    seeds = next(iter(values.values()))
    return estimate({seed: float(np.mean([values[domain][seed] for domain in members])) for seed in seeds})


def _cost(method: str | None, has_base: bool, number: int) -> dict[str, Any]:
    base = {"flops": 8.31e14, "seconds": 412.5 + 3.7 * number, "tokens": 2_457_600.0} if has_base else None
    proxy = {"flops": 1.27e14, "seconds": 96.1 + number, "tokens": 983_040.0} if method else None
    reference = {"flops": 1.19e14, "seconds": 61.4, "tokens": 983_040.0} if method == "doremi" else None
    stages = [stage for stage in (reference, proxy, base) if stage]
    total = {key: sum(stage[key] for stage in stages) for key in ("flops", "seconds", "tokens")}
    return {"reference": reference, "proxy": proxy, "base": base, "total": total}


def _accuracy(tasks: Sequence[str], seeds: Sequence[int], generator: np.random.Generator) -> dict[str, Any]:
    found = {task: {seed: float(generator.uniform(0.21, 0.61)) for seed in seeds} for task in tasks}
    return {task: estimate(values) for task, values in found.items()} | {"mean": _average(found, list(found))}


def _places(mixture: str, method: str | None, has_base: bool, seed: int) -> dict[str, str | None]:
    slug = mixture.replace(" ", "_")
    return {
        "reference": f"stages/reference-{slug}-s{seed}-0a1b2c3d4e" if method == "doremi" else None,
        "proxy": f"stages/proxy-{slug}-s{seed}-1a2b3c4d5e" if method else None,
        "base": f"stages/base-{slug}-s{seed}-2a3b4c5d6e" if has_base else None,
        "eval": f"stages/eval-{slug}-s{seed}-3a4b5c6d7e" if has_base else None,
    }
