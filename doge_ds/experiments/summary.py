"""summary.json of one comparison, from what its finished stages left; docs/comparing.md says what stands in it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from doge_ds.errors import DogeError
from doge_ds.experiments.chains import Chain, Comparison
from doge_ds.experiments.numbers import (
    across_seeds,
    averages,
    by_domain,
    differences,
    estimate,
    from_uniform,
)
from doge_ds.experiments.stages import KINDS, Kind, Stage
from doge_ds.mixture_tables import total_variation
from doge_ds.reporting.metrics import Metrics, read_metrics
from doge_ds.reporting.run_files import Facts, Results, RunRecord, read_facts, read_runs, validate_file

VERSION = 1
MOST_POINTS = 120  # of a trajectory

Kept = TypeVar("Kept")
Numbers = dict[str, dict[int, float | None]]  # by domain or task, then by seed


@dataclass(frozen=True)
class Found:
    """What the finished stages of one mixture left, by seed.

    Attributes:
        proxies: finished runs, and of a mixture that is not learned none.
        weights: what bases train on; of the seeds whose weights are known.
        results: of the evaluations.
    """

    chains: Mapping[int, Chain]
    proxies: dict[int, RunRecord]
    weights: dict[int, dict[str, float]]
    results: dict[int, Results]


def summarize(comparison: Comparison, folder: Path, devices: str | None) -> dict[str, Any]:
    """All of it, as JSON; a seed whose stages are not finished is left out of its numbers.

    Args:
        folder: that the stages lie in; their places are relative to it.
        devices: what they ran on, in words; None where that was another machine, or nobody knows.

    Raises:
        DogeError: a file that a stage left is damaged.
    """
    found = {name: _look(comparison, name) for name in comparison.config.mixtures}
    perplexities = {name: _perplexities(of) for name, of in found.items()}
    stages = [stage for of in found.values() for chain in of.chains.values() for stage in chain.values()]
    config = comparison.config
    return {
        "version": VERSION,
        "name": comparison.name,
        "against": config.against or next(iter(config.mixtures)),
        "seeds": config.seeds,
        "machine": {"cores": os.cpu_count() if devices else None, "devices": devices},
        "complete": all(stage.is_finished for stage in stages),
        "groups": comparison.groups,
        "mixtures": {
            name: {
                **_about(comparison, name, found),
                **_measured(comparison, name, perplexities),
                **_other_measures(of),
                "cost": _costs(of),
                **_learning(of),
                "stages": _places(of, folder),
            }
            for name, of in found.items()
        },
    }


def _look(comparison: Comparison, name: str) -> Found:
    chains, staged = comparison.chains[name], comparison.config.mixtures[name].stages is not None
    proxies = {seed: _read(stage, _run) for seed, stage in _finished(chains, "proxy").items()}
    if name in comparison.given:
        weights = dict.fromkeys(chains, comparison.given[name])
    else:
        weights = {seed: run.mixture.domains for seed, run in proxies.items() if run.mixture}
    if staged:  # each part counts by the base's steps, not the proxy's
        facts = {seed: _read(stage, _facts) for seed, stage in _finished(chains, "base").items()}
        weights |= {seed: of.mixture for seed, of in facts.items() if of.mixture}
    results = {seed: _read(stage, _results) for seed, stage in _finished(chains, "eval").items()}
    return Found(chains, proxies, weights, results)


def _run(stage: Stage) -> RunRecord:
    return read_runs([stage.directory])[0]


def _facts(stage: Stage) -> Facts:
    return read_facts(stage.directory)


def _results(stage: Stage) -> Results:
    return validate_file(Results, stage.result)


def _read(stage: Stage, read: Callable[[Stage], Kept]) -> Kept:
    """What a finished stage left. Raises DogeError with the remedy for a stage, which is to do it again."""
    try:
        return read(stage)
    except DogeError as error:
        where, problem, _ = error.args
        raise type(error)(where, problem, f"remove {stage.directory}, and start the comparison again") from None


def _finished(chains: Mapping[int, Chain], kind: Kind) -> dict[int, Stage]:
    return {seed: chain[kind] for seed, chain in chains.items() if kind in chain and chain[kind].is_finished}


def _estimates(numbers: Numbers) -> dict[str, Any] | None:
    return {name: estimate(by_seed) for name, by_seed in numbers.items()} or None


def _about(comparison: Comparison, name: str, of_all: Mapping[str, Found]) -> dict[str, Any]:
    """What the mixture is."""
    found, against = of_all[name], comparison.config.against_of(name)
    weights = by_domain(found.weights)
    proxy = next((chain["proxy"] for chain in found.chains.values() if "proxy" in chain), None)
    distances = {seed: from_uniform(of) for seed, of in found.weights.items()}
    others = of_all[against].weights if against != name else {}
    moved = {
        seed: total_variation(of, others[seed])
        for seed, of in found.weights.items()
        if seed in others and of.keys() == others[seed].keys()
    }
    return {
        "against": against,
        "method": (proxy.config or {}).get("method", "doge") if proxy else None,
        "mixture": comparison.config.mixtures[name].mixture,
        "weights": _estimates(weights) or {},
        "distance_from_uniform": estimate(distances) if distances else None,
        "distance_from_against": estimate(moved) if moved else None,
    }


def _perplexities(found: Found) -> Numbers:
    """Log-perplexity of each domain."""
    return by_domain(
        {
            seed: {name: domain.log_perplexity for name, domain in results.perplexity.domains.items()}
            for seed, results in found.results.items()
            if results.perplexity
        }
    )


def _measured(comparison: Comparison, name: str, perplexities: Mapping[str, Numbers]) -> dict[str, Any]:
    """Log-perplexities, and their differences to the mixture that this one is compared with."""
    of, against = perplexities[name], comparison.config.against_of(name)
    config = comparison.config
    members = {group: domains for group, domains in comparison.groups.items() if config.counts_in(name, group)}
    groups = {group: averages(of, domains) for group, domains in members.items()} if of else {}
    return {
        "log_perplexity": _estimates(of),
        "average_log_perplexity": _estimates(groups),
        **_compared(of, groups, perplexities[against] if against != name else {}, members),
    }


def _compared(of: Numbers, groups: Numbers, others: Numbers, domains_of: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """`differences`, null without a mixture to compare with, and `worst_domain`."""
    domains = {name: differences(by_seed, others[name]) for name, by_seed in of.items()} if others else {}
    found, worst = None, None
    if any(domains.values()):
        of_groups = {
            group: differences(by_seed, averages(others, domains_of[group])) for group, by_seed in groups.items()
        }
        found = {"domains": _estimates(domains), "groups": _estimates(of_groups)}
    if name := _largest(of):
        worst = {"name": name, "log_perplexity": estimate(of[name]), "difference_name": None, "difference": None}
        if found and (largest := _largest(domains)):
            worst |= {"difference_name": largest, "difference": estimate(domains[largest])}
    return {"differences": found, "worst_domain": worst}


def _largest(numbers: Numbers) -> str | None:
    """The name with the largest mean, None where none has one."""
    means = {name: estimate(by_seed)["mean"] for name, by_seed in numbers.items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    return max(known, key=lambda name: known[name]) if known else None


def _other_measures(found: Found) -> dict[str, Any]:
    """Bits per byte of each domain, accuracy of each task and their mean."""
    bits = {
        seed: {name: domain.bits_per_byte for name, domain in results.perplexity.domains.items()}
        for seed, results in found.results.items()
        if results.perplexity
    }
    accuracy = {
        seed: {**{name: task.acc for name, task in results.tasks.items()}, "mean": results.mean_accuracy}
        for seed, results in found.results.items()
        if results.tasks
    }
    return {"bits_per_byte": _estimates(by_domain(bits)), "accuracy": _estimates(by_domain(accuracy))}


def _costs(found: Found) -> dict[str, Any]:
    """Of each kind of run, means over the seeds that are finished, and the sum of these."""
    costs: dict[str, Any] = {
        kind: _cost(_finished(found.chains, kind), found.proxies) for kind in KINDS if kind != "eval"
    }
    known = [cost for cost in costs.values() if cost]
    return {**costs, "total": {key: _sum([cost[key] for cost in known]) for key in ("flops", "seconds", "tokens")}}


def _cost(stages: Mapping[int, Stage], proxies: Mapping[int, RunRecord]) -> dict[str, float | None] | None:
    if not stages:
        return None
    metrics = [
        proxies[seed].metrics if stage.kind == "proxy" else read_metrics(stage.directory / "metrics.jsonl")
        for seed, stage in stages.items()
    ]
    sums = {
        "flops": _sum([stage.flops for stage in stages.values()]),
        "seconds": _sum([of.last("seconds") for of in metrics]),
        "tokens": _sum([of.last("tokens") for of in metrics]),
    }
    return {key: None if total is None else total / len(stages) for key, total in sums.items()}


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _learning(found: Found) -> dict[str, Any]:
    """How the proxies came to their weights."""
    last = {seed: _last_weights(run.metrics) for seed, run in found.proxies.items()}
    halves = {seed: _half_to_end(run) for seed, run in found.proxies.items()}
    ends = [run.mixture.domains for run in found.proxies.values() if run.mixture]
    first = next(iter(found.proxies.values()), None)
    return {
        "last_weights": _estimates(by_domain(last)),
        "stability": {"half_to_end": estimate(halves), "across_seeds": across_seeds(ends)} if halves else None,
        "gram_cosines": _cosines([run.metrics for run in found.proxies.values()]),
        "warnings": [
            f"seed {seed}, step {step}: {text}"
            for seed, run in found.proxies.items()
            for step, text in run.metrics.warnings
        ],
        "trajectory": _trajectory(first.metrics) if first else None,
    }


def _last_weights(metrics: Metrics) -> dict[str, float | None]:
    return {name: metrics.last(f"weight/{name}") for name in metrics.names("weight/")}


def _half_to_end(run: RunRecord) -> float | None:
    """Total variation distance of the mean weights at the logged step next to half of the run to those at its end."""
    metrics, names = run.metrics, run.metrics.names("mean_weight/")
    if not names:
        return None
    means = np.stack([metrics.columns[f"mean_weight/{name}"] for name in names], axis=1)
    known = np.flatnonzero(np.isfinite(means).all(axis=1))
    if not len(known):
        return None
    half = known[np.abs(metrics.steps[known] - run.config.training.steps / 2).argmin()]
    weights = [dict(zip(names, means[place].tolist(), strict=True)) for place in (half, known[-1])]
    return total_variation(*weights)


def _cosines(metrics: Sequence[Metrics]) -> dict[str, Any] | None:
    """Mean over seeds of each run's mean cosines; None where no Gram matrix was logged."""
    measured = [of for of in metrics if of.cosines is not None]
    if not measured:
        return None
    rows = measured[0].cosine_rows
    measured = [of for of in measured if set(of.cosine_rows) == set(rows)]
    places = [[of.cosine_rows.index(name) for name in rows] for of in measured]  # with subsets the order may differ
    stacked = np.stack([np.asarray(of.cosines)[np.ix_(at, at)] for of, at in zip(measured, places, strict=True)])
    counts = np.isfinite(stacked).sum(axis=0)
    mean = np.divide(np.nansum(stacked, axis=0), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return {"rows": rows, "columns": rows, "values": mean.tolist()}


def _trajectory(metrics: Metrics) -> dict[str, Any] | None:
    """Weights at some of the logged steps, the first and the last among them."""
    count = len(metrics.steps)
    if not count:
        return None
    places = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
    found: dict[str, Any] = {"steps": metrics.steps[places].astype(int).tolist()}
    for key in ("mean_weight", "weight"):
        columns = {name: metrics.columns[f"{key}/{name}"] for name in metrics.names(f"{key}/")}
        found[key] = {name: column[places].tolist() for name, column in columns.items()}
    return found


def _places(found: Found, folder: Path) -> dict[str, dict[str, str]]:
    """Directories of the stages, relative to the comparison's folder."""
    return {
        str(seed): {kind: os.path.relpath(stage.directory, folder) for kind, stage in chain.items()}
        for seed, chain in found.chains.items()
    }
