"""The report's tables, one function each."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from doge_ds.mixture import Mixture
from doge_ds.reporting.cells import (
    NOTHING,
    Cell,
    Row,
    Table,
    duration,
    folding_table,
    number,
    signed,
    significant,
)
from doge_ds.reporting.heat_map import HEAT_MAP_ROWS, heat_table, similar_side_by_side
from doge_ds.reporting.run_files import PerplexityResult, RunRecord, is_uniform, proxy_with_mixture


def summary_table(runs: Sequence[RunRecord]) -> Table:
    """What each run is and how far it came; a column a run."""
    rates = [
        ("tokens_per_second_per_device", "tokens per second and device, median", 1),
        ("tflops_per_device", "TFLOP/s per device, median", 1),
        ("mfu", "model FLOPs utilisation, median, %", 100),
    ]
    facts: list[tuple[str, list[str]]] = [
        ("program", ["proxy" if run.is_proxy else "base" for run in runs]),
        ("state", ["finished" if run.is_finished else "not finished" for run in runs]),
        ("steps done", [f"{steps_done(run):,} of {run.config.training.steps:,}" for run in runs]),
        ("tokens read", [number(run.metrics.last("tokens"), 0) for run in runs]),
        ("wall time", [duration(run.metrics.last("seconds")) for run in runs]),
        ("tokens per second, mean", [number(_mean_rate(run), 0) for run in runs]),
        *(
            (label, [significant(_scaled(run.metrics.middle(key), scale)) for run in runs])
            for key, label, scale in rates
            if any(run.metrics.middle(key) is not None for run in runs)
        ),
        ("ranks", [f"{run.facts.ranks:,}" for run in runs]),
        ("last logged loss, nats per token", [number(run.metrics.last("loss"), 3) for run in runs]),
    ]
    if any(run.metrics.last("effective_domains") is not None for run in runs):
        for key, label, digits in (
            ("effective_domains", "effective number of domains, exp(entropy), at the end", 2),
            ("weight_drift", "mean weights of the last tenth against the tenth before, total variation", 4),
        ):
            facts.append((label, [number(run.metrics.last(key), digits) for run in runs]))
    if any(skipped_lines(run) for run in runs):
        facts.append(("logged steps skipped by DeepSpeed", [f"{skipped_lines(run):,}" for run in runs]))
    rows = [Row(label, [Cell(text) for text in texts]) for label, texts in facts]
    return Table("What ran and how far it came", "", [run.name for run in runs], rows)


def steps_done(run: RunRecord) -> int:
    """Steps done at the last logged line."""
    return int(run.metrics.last("step") or 0)


def skipped_lines(run: RunRecord) -> int:
    """Logged steps that DeepSpeed did not apply."""
    applied = run.metrics.columns.get("applied", np.empty(0))
    return int((applied == 0).sum())


def _mean_rate(run: RunRecord) -> float | None:
    tokens, seconds = run.metrics.last("tokens"), run.metrics.last("seconds")
    return tokens / seconds if tokens is not None and seconds else None


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def mixture_table(proxies: Sequence[RunRecord]) -> Table:
    """Mean weights, the first proxy's largest first, as bars; each with its ratio to the uniform weight."""
    mixtures = [run.mixture for run in proxies if run.mixture]
    names = _by_weight(mixtures)
    largest = max(max(mixture.domains.values()) for mixture in mixtures) or 1.0
    rows = []
    for name in names:
        cells = []
        for mixture in mixtures:
            weight = mixture.domains.get(name)
            ratio = NOTHING if weight is None else f"\N{MULTIPLICATION SIGN}{weight * len(mixture.domains):.2f}"
            cells += [Cell(weight_text(weight), bar=None if weight is None else weight / largest), Cell(ratio)]
        rows.append(Row(name, cells))
    several = len(mixtures) > 1
    columns = [
        label
        for run in proxies
        if run.mixture
        for label in (f"{run.name}: mean weight" if several else "mean weight", "to uniform")
    ]
    return folding_table("Mean weight of each domain, largest first", "domain", columns, rows)


def weight_text(weight: float | None) -> str:
    """Four decimals; two digits of what would be lost in them."""
    return f"{weight:.2g}" if weight is not None and 0 < weight < 1e-3 else number(weight, 4)


def share_table(run: RunRecord) -> Table:
    """Of the sequences that a base run has read, wanted and achieved share of each domain, in percent."""
    mixture = run.mixture.domains if run.mixture else {}
    logged = {name: run.metrics.last(f"wanted_share/{name}") for name in mixture}  # of a schedule: until that step
    wanted = {name: weight if (share := logged[name]) is None else share for name, weight in mixture.items()}
    rows = []
    for name in sorted(wanted, key=lambda name: -wanted[name]):
        achieved = run.metrics.last(f"achieved_share/{name}")
        difference = NOTHING if achieved is None else signed(100 * (achieved - wanted[name]), 3)
        shares = [number(_scaled(share, 100)) for share in (wanted[name], achieved)]
        rows.append(Row(name, [Cell(text) for text in (*shares, difference)]))
    caption = f"Share of each domain in the sequences read, after {steps_done(run):,} steps"
    return folding_table(caption, "domain", ["wanted, %", "achieved, %", "difference, points"], rows)


def heat_map_rows(run: RunRecord) -> list[int]:
    """Rows of the proxy's cosine matrix that the heat map shows, in its order.

    All, or of more than HEAT_MAP_ROWS the targets and the domains with the largest mean weights; ordered so that
    similar rows are neighbours.
    """
    cosines, names = run.metrics.cosines, run.metrics.cosine_rows
    if cosines is None:
        return []
    weights = (run.mixture.domains if run.mixture else {}) | dict.fromkeys(run.target_domains, math.inf)
    chosen = sorted(range(len(names)), key=lambda row: -weights.get(names[row], math.inf))[:HEAT_MAP_ROWS]
    if len(chosen) < 3:
        return sorted(chosen)
    return [chosen[place] for place in similar_side_by_side(cosines[np.ix_(chosen, chosen)])]


def cosine_table(run: RunRecord) -> Table:
    """The heat map: cosines between the rows' gradients, shaded from the smallest to the largest off the diagonal."""
    cosines, names, order = run.metrics.cosines, run.metrics.cosine_rows, heat_map_rows(run)
    if cosines is None:
        raise ValueError(f"{run.name} has no cosines")
    shown = [names[row] for row in order]
    caption = "Cosine between the gradients of each two domains, similar ones side by side; deeper shades are larger"
    return heat_table(caption, shown, shown, cosines[np.ix_(order, order)], [_row_note(run, name) for name in shown])


def _row_note(run: RunRecord, name: str) -> str:
    """What a row of the proxy is beside a train domain."""
    if name in run.target_domains:
        return "target" if name not in run.train_domains else "target, trained on"
    return "" if name in run.train_domains else "even mix"


def perplexity_table(bases: Sequence[RunRecord], targets: Sequence[str]) -> Table:
    """Held-out perplexities side by side, each with its difference to the first; averages below."""
    measured = [(run, run.results.perplexity) for run in bases if run.results and run.results.perplexity]
    names = list(dict.fromkeys(name for _, result in measured for name in result.domains))
    columns = [measured[0][0].name]
    for run, _ in measured[1:]:
        columns += [run.name, f"difference to {measured[0][0].name}", "in %"]
    rows = []
    for name in names:
        found = [result.domains.get(name) for _, result in measured]
        cells = _compared([(domain.perplexity if domain else None) for domain in found])
        rows.append(Row(name, cells, note="target" if name in targets else ""))
    folded = folding_table(
        "Held-out perplexity of each domain; lower is better, the lowest of several is bold", "domain", columns, rows
    )
    return Table(folded.caption, "domain", columns, [*folded.rows, *_averages(measured)], folded=folded.folded)


def selection_table(run: RunRecord) -> Table:
    """The tensors that a proxy's scores come from, then the others, by their cancellation effect."""
    found = run.selection
    if found is None:
        raise ValueError(f"{run.name} has no selection")
    effects, selected = found.cancellation_effect, set(found.selected)
    order = sorted(effects, key=lambda name: (name not in selected, effects[name] or 0.0))
    rows = [Row(name, [Cell(number(effects[name]))], note="selected" if name in selected else "") for name in order]
    caption = (
        f"Cancellation effect of each tensor over {found.measured_steps:,} steps; scores come from those selected, "
        f"{found.share_of_parameters:.1%} of the parameters"
    )
    return folding_table(
        caption,
        "tensor",
        [
            "sum of \N{DOUBLE VERTICAL LINE}gradient\N{DOUBLE VERTICAL LINE} / "
            "\N{DOUBLE VERTICAL LINE}change\N{DOUBLE VERTICAL LINE}"
        ],
        rows,
    )


def has_common_domains(bases: Sequence[RunRecord]) -> bool:
    """Whether the measured bases were measured on the same domains, so that their averages can be compared."""
    return (
        len({frozenset(run.results.perplexity.domains) for run in bases if run.results and run.results.perplexity}) < 2
    )


def _averages(measured: Sequence[tuple[RunRecord, PerplexityResult]]) -> list[Row]:
    labels = [
        ("average_perplexity", "arithmetic mean"),
        ("geometric_perplexity", "geometric mean"),
        ("average_log_perplexity", "mean log-perplexity, nats"),
    ]
    is_comparable = has_common_domains([run for run, _ in measured])
    rows = []
    for key, label in labels:
        values = [getattr(result, key) for _, result in measured]
        cells = _compared(values, 4 if key == "average_log_perplexity" else 2, is_comparable)
        if key == "average_log_perplexity":  # a share of nats means nothing
            cells[3::3] = [Cell(NOTHING)] * (len(values) - 1)
        rows.append(Row(label, cells, is_summary=True))
    return rows


def _compared(values: Sequence[float | None], digits: int = 2, is_comparable: bool = True) -> list[Cell]:
    """The first value; then each with its difference to the first, and that in percent. The lowest is set strongly."""
    known = [value for value in values if value is not None]
    lowest = min(known) if is_comparable and len(values) > 1 and len(known) == len(values) else None
    cells = [Cell(number(values[0], digits), strong=values[0] is not None and values[0] == lowest)]
    for value in values[1:]:
        first = values[0] if is_comparable else None
        cells.append(Cell(number(value, digits), strong=value is not None and value == lowest))
        if value is None or first is None:
            cells += [Cell(NOTHING), Cell(NOTHING)]
        else:
            percent = signed(100 * (value - first) / first, 1) if first else NOTHING
            cells += [Cell(signed(value - first, digits)), Cell(percent)]
    return cells


def configuration_table(alike: Sequence[RunRecord], runs: Sequence[RunRecord]) -> Table:
    """Facts and resolved configuration of runs of one program, one key a row; where they differ is marked.

    Args:
        alike: the runs that have a column.
        runs: all runs of the report.
    """
    columns = [{**_facts(run, runs), **_flatten(run.config_values)} for run in alike]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = []
    for key in keys:
        texts = [column.get(key, NOTHING) for column in columns]
        rows.append(Row(key, [Cell(text) for text in texts], note="differs" if len(set(texts)) > 1 else ""))
    caption = f"Facts and resolved configuration: {'proxy' if alike[0].is_proxy else 'base'}"
    return Table(caption, "key", [run.name for run in alike], rows, kind="text")


def mixture_origin(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """In words, where a base's mixture comes from, as far as the runs here tell."""
    if run.mixture is None:
        return NOTHING
    if run.facts.schedule:
        return f"that changed {len(run.facts.schedule) - 1} times; its mean over the run"
    if proxy := proxy_with_mixture(run.mixture, runs):
        return f"learned by {proxy.name}"
    return "uniform" if is_uniform(run.mixture) else "of no proxy in this report"


def _facts(run: RunRecord, runs: Sequence[RunRecord]) -> dict[str, str]:
    facts = {
        "run directory": str(run.path),
        "program": run.facts.program,
        "ranks": str(run.facts.ranks),
        "config sha256": run.config_sha256,
        "store fingerprint": run.facts.store,
        "tokenizer sha256": run.facts.tokenizer_sha256,
        **{key: _text(value) for key, value in (run.facts.model_extra or {}).items()},
    }
    if not run.is_proxy:
        facts["mixture"] = mixture_origin(run, runs)
    elif run.is_finished and run.mixture:
        shown = {"config_sha256", "accepted_steps", "method"}
        facts |= {f"mixture {key}": _text(value) for key, value in run.mixture.source.items() if key in shown}
    return facts


def _flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}."""
    if not isinstance(values, dict) or not values:
        return {prefix.rstrip("."): _text(values)}
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_weight(mixtures: Sequence[Mixture]) -> list[str]:
    """All domains, by the first mixture's weight, then the second's."""
    names = dict.fromkeys(name for mixture in mixtures for name in mixture.domains)
    return sorted(names, key=lambda name: [-mixture.domains.get(name, -1.0) for mixture in mixtures])
