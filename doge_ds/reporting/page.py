"""The report page: what it says, in which order; page.html and style.css say how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from doge_ds.reporting import evaluations, figures, tables, words
from doge_ds.reporting.cells import Table
from doge_ds.reporting.downloads import BUDGET, downloads
from doge_ds.reporting.evaluations import Comparison
from doge_ds.reporting.figures import Panel
from doge_ds.reporting.run_files import RunRecord
from doge_ds.reporting.svg import Chart
from doge_ds.reporting.templates import fill_template, fitting_page

# Of one line on a wide screen, which has about two pixels for each; many runs share what two may have.
POINTS = 240
RUNS_IN_FULL = 2


@dataclass(frozen=True)
class ProxySection:
    """What the page shows of how one proxy came to its mixture."""

    run: RunRecord
    weights: Chart | None
    losses: Chart | None
    held_out: Chart | None
    cosines: Table | None
    cosines_note: str
    note: str
    selection: Table | None
    warnings: list[str]


@dataclass(frozen=True)
class BaseSection:
    """What the page shows of how one base run went."""

    run: RunRecord
    losses: Chart | None
    held_out: Chart | None
    shares: Table
    note: str


def render_page(runs: Sequence[RunRecord], written: datetime, comparison: Comparison | None = None) -> str:
    """The whole page as HTML, below 2 MB; names that come from files are escaped.

    Raises:
        ConfigError: so many runs or domains that they do not fit, also with fewer points and CSV lines.
    """

    def render(thinning: int) -> str:
        return fill_template("page.html", written, _contents(runs, comparison, thinning))

    return fitting_page(render, f"{len(runs)} runs")


def _contents(runs: Sequence[RunRecord], comparison: Comparison | None, thinning: int) -> dict[str, Any]:
    proxies = [run for run in runs if run.is_proxy]
    bases = [run for run in runs if not run.is_proxy]
    measured = [run for run in bases if run.results and run.results.perplexity]
    targets = list(dict.fromkeys(name for run in proxies for name in run.target_domains))
    order = domain_order(runs)
    points = POINTS * min(RUNS_IN_FULL, len(runs)) // (len(runs) * thinning)
    return {
        "title": ", ".join(run.name for run in runs),
        "runs": runs,
        "summary": tables.summary_table(runs),
        "answers": [words.proxy_sentence(run) for run in proxies] + [words.base_sentence(run, runs) for run in bases],
        "mixture": tables.mixture_table(proxies) if any(run.mixture for run in proxies) else None,
        "proxies": [_proxy_section(run, number, order, points) for number, run in enumerate(proxies)],
        "bases": [_base_section(run, number, order, points) for number, run in enumerate(bases)],
        "perplexity": tables.perplexity_table(measured, targets) if measured else None,
        "perplexity_notes": words.perplexity_notes(bases),
        "tasks": evaluations.task_table(bases),
        "comparison": evaluations.comparison_tables(comparison) if comparison else [],
        "configurations": [tables.configuration_table(alike, runs) for alike in (proxies, bases) if alike],
        "downloads": downloads(runs, BUDGET // thinning),
    }


def domain_order(runs: Sequence[RunRecord]) -> list[str]:
    """Targets, then domains by weight in the first run that has one: the same lines in every chart, in one look."""
    targets = [name for run in runs for name in run.target_domains]
    weights: dict[str, float] = {}
    for run in runs:
        for name, weight in (run.mixture.domains if run.mixture else {}).items():
            weights.setdefault(name, weight)
    keys = ("loss/", "held_out_log_perplexity/")
    others = [name for run in runs for key in keys for name in run.metrics.names(key)]
    return list(dict.fromkeys([*targets, *sorted(weights, key=lambda name: -weights[name]), *others]))


def _proxy_section(run: RunRecord, number: int, order: Sequence[str], points: int) -> ProxySection:
    metrics, steps = run.metrics, run.metrics.steps
    if not len(steps):
        return ProxySection(run, None, None, None, None, "", words.progress_note(run, points), None, [])
    weights = _weight_chart(run, number, order, points) if metrics.names("weight/") else None
    cosines = tables.cosine_table(run) if metrics.cosines is not None else None
    return ProxySection(
        run,
        weights,
        _loss_chart(run, f"p{number}", order, points),
        _held_out_chart(run, f"hp{number}", order, points),
        cosines,
        words.cosines_note(run),
        words.progress_note(run, points),
        tables.selection_table(run) if run.selection else None,
        [f"After step {step:,}, {text}." for step, text in metrics.warnings],
    )


def _base_section(run: RunRecord, number: int, order: Sequence[str], points: int) -> BaseSection:
    chart = _loss_chart(run, f"b{number}", order, points) if len(run.metrics.steps) else None
    held_out = _held_out_chart(run, f"hb{number}", order, points)
    return BaseSection(run, chart, held_out, tables.share_table(run), words.progress_note(run, points))


def _weight_chart(run: RunRecord, number: int, order: Sequence[str], points: int) -> Chart:
    """Weights and their running mean, on one scale."""
    uniform = 1 / max(1, len(run.train_domains))
    weights, means = _series(run, "weight/"), _series(run, "mean_weight/")
    described, caption = words.weights_description(run), "Domain weights over the steps."
    steps = run.metrics.steps
    return figures.weight_chart(f"w{number}", steps, weights, means, uniform, order, described, caption, points)


def _loss_chart(run: RunRecord, name: str, order: Sequence[str], points: int) -> Chart | None:
    """Losses of each domain, and the learning rate below on the same steps."""
    panels = [Panel("Training loss", "nats per token", run.metrics.steps, _series(run, "loss/"))]
    if (rate := run.metrics.columns.get("learning_rate")) is not None:
        series = {"learning rate": rate}
        panels.append(Panel("Learning rate", "", run.metrics.steps, series, height=80, is_labelled=False))
    caption = "Training loss of each domain over the steps, and the learning rate of the step."
    return figures.draw_chart(name, panels, order, words.losses_description(run), caption, points)


def _held_out_chart(run: RunRecord, name: str, order: Sequence[str], points: int) -> Chart | None:
    """What `training.eval_every` measured of each domain; None where it was not set."""
    if not (series := _series(run, "held_out_log_perplexity/")):
        return None
    title = "Held-out log-perplexity during training"
    panels = [Panel(title, "nats per token", run.metrics.steps, series)]
    caption = f"{title}, on the same windows of each domain every time."
    return figures.draw_chart(name, panels, order, words.held_out_description(run), caption, points)


def _series(run: RunRecord, prefix: str) -> dict[str, np.ndarray]:
    return {name: run.metrics.columns[f"{prefix}{name}"] for name in run.metrics.names(prefix)}
