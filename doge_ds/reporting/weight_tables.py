"""Tables of a comparison's mixtures: what they are, how they came about, what they cost, where they lie."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from doge_ds.reporting.cells import NOTHING, SHADES, Cell, Row, Table, duration, folding_table, number
from doge_ds.reporting.comparison_tables import spread_text
from doge_ds.reporting.heat_map import HEAT_MAP_ROWS, heat_table, similar_side_by_side
from doge_ds.reporting.summaries import Cosines, Costs, Estimate, MixtureSummary, Summary, SummaryFile
from doge_ds.reporting.tables import weight_text

METHODS = {"doge": "DoGE", "doremi": "DoReMi"}
_STAGES = ("reference", "proxy", "base", "eval")


def origin_table(summary: Summary) -> Table:
    """What was compared, a mixture a row."""
    rows = []
    for name, mixture in summary.mixtures.items():
        weights = next(iter(mixture.weights.values()), None)
        measured = next(iter((mixture.log_perplexity or {}).values()), None)
        cells = [
            Cell(origin(mixture)),
            Cell(NOTHING if mixture.against == name else mixture.against),
            Cell(f"{weights.seeds if weights else 0} of {len(summary.seeds)}"),
            Cell(f"{measured.seeds} of {len(summary.seeds)}" if measured else NOTHING),
        ]
        rows.append(Row(name, cells))
    columns = ["its weights", "compared with", "seeds with weights", "seeds measured"]
    return folding_table("What was compared", "mixture", columns, rows)


def origin(mixture: MixtureSummary) -> str:
    """Where a mixture's weights come from."""
    if mixture.method:
        return f"learned by {METHODS.get(mixture.method, mixture.method)}"
    return f"given: {mixture.mixture}" if mixture.mixture else "given"


def weight_table(summary: Summary, of_last_step: bool = False) -> Table | None:
    """Weights, domains by mixtures, each column shaded; those of the proxies' last step if asked for, or None."""
    found = {
        name: weights
        for name, mixture in summary.mixtures.items()
        if (weights := mixture.last_weights if of_last_step else mixture.weights)
    }
    if not found:
        return None
    largest = {name: max(weight.mean or 0.0 for weight in weights.values()) for name, weights in found.items()}
    rows = []
    for domain in summary.domains:
        cells = [_weight_cell(weights.get(domain), largest[name]) for name, weights in found.items()]
        if any(domain in weights for weights in found.values()):
            rows.append(Row(domain, cells))
    trained_on = "Weights that bases are trained on" if summary.measured else "Mean weights"
    what = "Weights at the proxies' last step" if of_last_step else trained_on
    return folding_table(f"{what}, mean over seeds (smallest to largest of them)", "domain", list(found), rows)


def _weight_cell(weight: Estimate | None, largest: float) -> Cell:
    mean = weight.mean if weight else None
    shade = round(SHADES * min(1.0, mean / largest)) if mean is not None and mean >= 0 and largest > 0 else None
    return Cell(spread_text(weight, weight_text), shade=shade)


def stability_table(summary: Summary) -> Table | None:
    """How settled the learned weights are; None where nothing has been learned."""
    rows = [Row(name, _distance_cells(name, mixture)) for name, mixture in _learned(summary)]
    return folding_table(_DISTANCES, "mixture", _DISTANCE_COLUMNS, rows) if rows else None


def front_weight_table(files: Sequence[SummaryFile]) -> Table | None:
    """The same of every comparison; None where nothing has been learned."""
    rows = [
        Row(
            file.title,
            [Cell(name), *_distance_cells(name, mixture)],
            note="" if file.summary.complete else "not finished",
        )
        for file in files
        for name, mixture in _learned(file.summary)
    ]
    return folding_table(_DISTANCES, "comparison", ["mixture", *_DISTANCE_COLUMNS], rows) if rows else None


_DISTANCES = "How far mean weights lie apart, total variation distance (0 to 1); with several seeds smallest to largest"
_DISTANCE_COLUMNS = [
    *("half of the steps to the end", "one seed to another", "from uniform"),
    *("from the one compared with, same seed", "compared with"),
]


def _learned(summary: Summary) -> list[tuple[str, MixtureSummary]]:
    return [(name, mixture) for name, mixture in summary.mixtures.items() if mixture.method and mixture.weights]


def _distance_cells(name: str, mixture: MixtureSummary) -> list[Cell]:
    stability = mixture.stability
    return [
        Cell(spread_text(stability.half_to_end if stability else None)),
        Cell(number(stability.across_seeds if stability else None, 4)),
        Cell(spread_text(mixture.distance_from_uniform)),
        Cell(spread_text(mixture.distance_from_against)),
        Cell(mixture.against if mixture.against != name else NOTHING),
    ]


def cost_tables(summary: Summary) -> list[Table]:
    """Operations, time and tokens of each stage, means over seeds; a table for each that is known."""
    machine = summary.machine
    ran_on = f" ({machine.cores} cores, {machine.devices})" if machine.cores and machine.devices else ""
    kinds: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("flops", "Floating-point operations", lambda value: number(value, 0)),
        ("seconds", f"Wall time{ran_on}", duration),
        ("tokens", "Tokens read", lambda value: number(value, 0)),
    ]
    tables = []
    for key, what, write in kinds:
        rows = []
        for name, mixture in summary.mixtures.items():
            stages = [getattr(mixture.cost, stage) for stage in ("reference", "proxy", "base", "total")]
            cells = [Cell(write(getattr(stage, key))) if stage else Cell(NOTHING) for stage in stages]
            rows.append(Row(name, [*cells, Cell(number(_extra(mixture.cost, key), 1))]))
        columns = ["reference", "proxy", "base", "total", "before the base, in % of the base"]
        if any(cell.text != NOTHING for row in rows for cell in row.cells):
            tables.append(folding_table(f"{what} of one seed, mean over seeds", "mixture", columns, rows))
    return tables


def _extra(costs: Costs, key: str) -> float | None:
    """What comes before the base, in percent of the base."""
    base = getattr(costs.base, key) if costs.base else None
    before = [getattr(stage, key) for stage in (costs.reference, costs.proxy) if stage]
    if not base or any(value is None for value in before):
        return None
    return float(100 * sum(before) / base)


def places_table(summary: Summary) -> Table:
    """Where the runs lie, a mixture and seed a row."""
    rows = [
        Row(name, [Cell(str(seed)), *(Cell(getattr(places, stage) or NOTHING) for stage in _STAGES)])
        for name, mixture in summary.mixtures.items()
        for seed, places in mixture.stages.items()
    ]
    columns = ["seed", "reference", "proxy", "base", "evaluation"]
    return folding_table(
        "Run directories, in the folder that the comparison was run in", "mixture", columns, rows, "text"
    )


def shown_cosines(cosines: Cosines, mixture: MixtureSummary) -> tuple[list[str], list[str], np.ndarray]:
    """Names of rows and columns that a heat map shows, and their cosines, [rows, columns], NaN where there is none.

    Of more than HEAT_MAP_ROWS those that are not trained on and those with the largest weights; similar ones side by
    side where rows and columns are the same.
    """
    values = np.array([[math.nan if value is None else value for value in line] for line in cosines.values])
    rows, columns = _largest(cosines.rows, mixture), _largest(cosines.columns, mixture)
    if set(cosines.rows) == set(cosines.columns):
        names = [cosines.rows[row] for row in rows]
        square = values[np.ix_(rows, [cosines.columns.index(name) for name in names])]
        order = similar_side_by_side(square.clip(-1, 1))
        names = [names[place] for place in order]
        return names, names, square[np.ix_(order, order)]
    return (
        [cosines.rows[row] for row in rows],
        [cosines.columns[column] for column in columns],
        values[np.ix_(rows, columns)],
    )


def _largest(names: list[str], mixture: MixtureSummary) -> list[int]:
    means = {name: weight.mean or 0.0 for name, weight in mixture.weights.items()}
    chosen = sorted(range(len(names)), key=lambda place: -means.get(names[place], math.inf))[:HEAT_MAP_ROWS]
    return sorted(chosen)


def cosine_table(name: str, mixture: MixtureSummary) -> Table | None:
    """The heat map of one proxy; None where it has no cosines."""
    if (cosines := mixture.gram_cosines) is None:
        return None
    rows, columns, values = shown_cosines(cosines, mixture)
    caption = f"Cosine between the gradients of each row and column, mean over the proxies of {name}; deeper is larger"
    return heat_table(caption, rows, columns, values, [_row_note(row, mixture) for row in rows])


def _row_note(row: str, mixture: MixtureSummary) -> str:
    if row in mixture.weights or not mixture.weights:
        return ""
    return "even mix" if row == "<mix>" else "not trained on"
