"""Numbers over seeds: means with their intervals, differences, distances; plain arithmetic, as JSON has it."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student  # type: ignore[import-untyped]

from doge_ds.mixture_tables import total_variation

LEVEL = 0.95

BySeed = Mapping[int, float | None]


def estimate(by_seed: BySeed) -> dict[str, Any]:
    """The mean over seeds and its 95% interval by Student's t.

    Args:
        by_seed: None where a number is not finite, as a diverged model's is: then there is no mean either.

    Returns:
        by_seed (keys are text), mean, low, high; the last two None with fewer than two seeds.
    """
    values = list(by_seed.values())
    found: dict[str, Any] = {"by_seed": {str(seed): value for seed, value in by_seed.items()}}
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        return found | {"mean": None, "low": None, "high": None}
    mean = statistics.mean(known)  # exact, so that the same number of all seeds has an interval of no width
    if len(known) == 1:
        return found | {"mean": mean, "low": None, "high": None}
    error = statistics.stdev(known) / math.sqrt(len(known))
    half = float(student.ppf((1 + LEVEL) / 2, len(known) - 1)) * error
    return found | {"mean": mean, "low": mean - half, "high": mean + half}


def differences(by_seed: BySeed, against: BySeed) -> dict[int, float | None]:
    """Seed by seed, of the seeds that both have."""
    return {
        seed: None if value is None or (other := against[seed]) is None else value - other
        for seed, value in by_seed.items()
        if seed in against
    }


def averages(by_domain: Mapping[str, BySeed], domains: Sequence[str]) -> dict[int, float | None]:
    """Of every seed, the plain mean over these domains."""
    seeds = next(iter(by_domain.values()), {})
    found: dict[int, float | None] = {}
    for seed in seeds:
        values = [by_domain[name][seed] for name in domains]
        known = [value for value in values if value is not None]
        found[seed] = math.fsum(known) / len(known) if len(known) == len(values) else None
    return found


def by_domain(of_seeds: Mapping[int, Mapping[str, float | None]]) -> dict[str, dict[int, float | None]]:
    """{seed: {domain: number}} -> {domain: {seed: number}}; all seeds have the first one's domains."""
    names = next(iter(of_seeds.values()), {})
    return {name: {seed: found[name] for seed, found in of_seeds.items()} for name in names}


def from_uniform(weights: Mapping[str, float]) -> float:
    """Total variation distance to the same weight for every domain."""
    return total_variation(weights, dict.fromkeys(weights, 1 / len(weights)))


def across_seeds(mixtures: Sequence[Mapping[str, float]]) -> float | None:
    """Mean total variation distance over all pairs; None with fewer than two."""
    found = [total_variation(one, other) for one, other in itertools.combinations(mixtures, 2)]
    return math.fsum(found) / len(found) if found else None
