"""How far a mean over windows is known: the percentile bootstrap (Efron and Tibshirani 1993) over windows."""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from doge_ds.errors import ConfigError
from doge_ds.evaluation.windows import DomainLosses

RESAMPLES = 1000
# Windows drawn at a time: 8 MB each for their numbers, nats and tokens.
DRAWN_AT_A_TIME = 2**20


def log_perplexity(losses: DomainLosses) -> float:
    """Nats a token over all windows: correctly rounded sums, whatever the order in which windows were measured."""
    return math.fsum(losses.nats) / int(losses.tokens.sum())


def log_perplexity_interval(losses: DomainLosses, seed: int) -> tuple[float, float]:
    """95% interval of the log-perplexity; infinite where there is one window, which says nothing of the spread."""
    return _interval([losses.nats], [losses.tokens], seed)


def difference(a: DomainLosses, b: DomainLosses, seed: int) -> tuple[float, float, float]:
    """Log-perplexity of `a` less that of `b` over the same windows, and its 95% interval: low, high.

    Paired: both get the same windows in each resample, so what makes a window hard for both falls out.

    Raises:
        ConfigError: the two were not measured over the same windows.
    """
    return average_difference({"": a}, {"": b}, seed)


def average_difference(
    a: Mapping[str, DomainLosses], b: Mapping[str, DomainLosses], seed: int
) -> tuple[float, float, float]:
    """The same for the average log-perplexity over domains: windows are drawn within each domain.

    Raises:
        ConfigError: the two were not measured over the same windows of the same domains.
    """
    if a.keys() != b.keys() or any(not np.array_equal(a[name].tokens, b[name].tokens) for name in a):
        problem = "the models were not measured over the same windows"
        raise ConfigError("a difference of log-perplexities", problem, "measure them with equal options")
    mean = math.fsum(log_perplexity(a[name]) - log_perplexity(b[name]) for name in a) / len(a)
    return mean, *_interval([a[name].nats - b[name].nats for name in a], [a[name].tokens for name in a], seed)


def _interval(nats: list[np.ndarray], tokens: list[np.ndarray], seed: int) -> tuple[float, float]:
    """Of the mean over domains of sum of nats / sum of tokens; both [windows] of each domain."""
    if any(len(domain) < 2 for domain in tokens):
        return -math.inf, math.inf

    def average(*drawn: np.ndarray, axis: int) -> np.ndarray:
        ratios = [
            costs[numbers].sum(axis) / counts[numbers].sum(axis)
            for numbers, costs, counts in zip(drawn, nats, tokens, strict=True)
        ]
        mean: np.ndarray = np.mean(ratios, axis=0)
        return mean

    found = stats.bootstrap(
        [np.arange(len(domain)) for domain in tokens],
        average,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_A_TIME // max(map(len, tokens))),
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(seed),  # its name in all versions of scipy that are allowed
    ).confidence_interval
    return float(found.low), float(found.high)
