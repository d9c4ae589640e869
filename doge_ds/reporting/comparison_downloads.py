"""The data of comparisons as CSV in data: URIs, within a budget of bytes."""

import re
from collections.abc import Iterator, Mapping, Sequence

from doge_ds.reporting.downloads import BUDGET, Download, as_download, csv_text
from doge_ds.reporting.figures import thin
from doge_ds.reporting.summaries import Estimate, MixtureSummary, Summary, SummaryFile, Trajectory


def comparison_downloads(files: Sequence[SummaryFile], budget: int = BUDGET) -> list[Download]:
    """Of each comparison every number of every seed, means with intervals, trajectories and cosines.

    What does not fit into its share of so many bytes is left out, of trajectories some of the steps.
    """
    found: list[Download] = []
    share = budget // (4 * len(files))
    for number, file in enumerate(files):
        stem = re.sub(r"[^\w.-]", "_", file.summary.name) + (f"_{number + 1}" if len(files) > 1 else "")
        title, summary = file.title, file.summary
        tables = [
            ("means", "means over seeds with 95% intervals", csv_text([_MEANS, *_means(summary)])),
            ("seeds", "every number of every seed", csv_text([_SEEDS, *_seeds(summary)])),
            ("trajectories", "weights over the steps", _trajectories(summary, share)),
            ("cosines", "cosines between gradients", csv_text([_COSINES, *_cosines(summary)])),
        ]
        for kind, description, text in tables:
            download = as_download(f"{stem}_{kind}.csv", text, f"{title}: {description}")
            if text.count("\n") > 1 and len(download.uri) <= share:
                found.append(download)
    return found


_MEANS = ["mixture", "measure", "of", "mean", "low", "high", "seeds"]
_SEEDS = ["mixture", "measure", "of", "seed", "value"]
_COSINES = ["mixture", "row", "column", "cosine"]


def _estimates(summary: Summary) -> Iterator[tuple[str, str, str, Estimate]]:
    """Mixture, measure and domain, group or task of every number."""
    for name, mixture in summary.mixtures.items():
        for measure, values in _measures(mixture).items():
            for of, estimate in (values or {}).items():
                yield name, measure, of, estimate


def _measures(mixture: MixtureSummary) -> dict[str, Mapping[str, Estimate] | None]:
    differences = mixture.differences
    return {
        "average_log_perplexity": mixture.average_log_perplexity,
        "difference_of_average": differences.groups if differences else None,
        "log_perplexity": mixture.log_perplexity,
        "difference": differences.domains if differences else None,
        "bits_per_byte": mixture.bits_per_byte,
        "accuracy": mixture.accuracy,
        "weight": mixture.weights,
        "last_weight": mixture.last_weights,
    }


def _means(summary: Summary) -> list[list[str]]:
    return [
        [*names, *map(_text, (estimate.mean, estimate.low, estimate.high)), str(estimate.seeds)]
        for *names, estimate in _estimates(summary)
    ]


def _seeds(summary: Summary) -> list[list[str]]:
    return [
        [*names, str(seed), _text(value)]
        for *names, estimate in _estimates(summary)
        for seed, value in estimate.by_seed.items()
    ]


def _trajectories(summary: Summary, budget: int) -> str:
    found = {name: mixture.trajectory for name, mixture in summary.mixtures.items() if mixture.trajectory}
    whole = csv_text([_STEPS, *(row for name, of in found.items() for row in _steps(name, of, len(of.steps)))])
    length = 1.2 * len(whole)  # ends of lines become three characters
    if length <= budget:
        return whole
    points = int(max(len(of.steps) for of in found.values()) * budget / length)
    return csv_text([_STEPS, *(row for name, of in found.items() for row in _steps(name, of, points))])


_STEPS = ["mixture", "step", "domain", "weight", "mean_weight"]


def _steps(name: str, trajectory: Trajectory, points: int) -> list[list[str]]:
    nothing = [None] * len(trajectory.steps)
    domains = dict.fromkeys([*trajectory.weight, *trajectory.mean_weight])
    return [
        [name, str(trajectory.steps[place]), domain, *(_short(kind.get(domain, nothing)[place]) for kind in kinds)]
        for kinds in ((trajectory.weight, trajectory.mean_weight),)
        for place in thin(len(trajectory.steps), points).tolist()
        for domain in domains
    ]


def _cosines(summary: Summary) -> list[list[str]]:
    return [
        [name, row, column, "" if value is None else f"{value:.3f}"]
        for name, mixture in summary.mixtures.items()
        if (cosines := mixture.gram_cosines)
        for row, line in zip(cosines.rows, cosines.values, strict=True)
        for column, value in zip(cosines.columns, line, strict=True)
    ]


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
