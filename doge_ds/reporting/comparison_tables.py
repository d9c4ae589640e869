"""Tables of a comparison's results: averages, domains, tasks."""

import math
from collections.abc import Callable, Mapping, Sequence

from doge_ds.reporting.cells import (
    NOTHING,
    SHADES,
    Cell,
    Row,
    Table,
    folding_table,
    interval,
    number,
    signed,
)
from doge_ds.reporting.summaries import Estimate, MixtureSummary, Summary, SummaryFile, have_the_same_seeds

_DIGITS = 4  # of nats per token: differences between mixtures are of thousandths
_LARGEST_EXPONENT = 700.0  # of e; above it perplexities leave the range of a float


def front_table(files: Sequence[SummaryFile]) -> Table:
    """Every measured mixture of every comparison, by the average over each group that it counts in."""
    rows = []
    for file in files:
        for group in file.summary.groups:
            lowest = _lowest(file.summary, group)
            for name, mixture in _in_group(file.summary, group):
                average, _, *difference, _, reference = _average_cells(mixture, group, name == lowest)
                found = mixture.difference(group) or mixture.average(group)
                seeds = Cell(str(found.seeds if found else 0))
                cells = [Cell(name), Cell(group), average, *difference, seeds, reference]
                rows.append(Row(file.title, cells, note="" if file.summary.complete else "not finished"))
    columns = ["mixture", "average over", "log-perplexity", "difference", "95% interval", "seeds", "compared with"]
    return folding_table(f"Averages of each comparison, {_LEGEND}", "comparison", columns, rows)


def average_table(summary: Summary, group: str) -> Table:
    """Averages over one group's domains, a mixture a row."""
    lowest = _lowest(summary, group)
    rows = [Row(name, _average_cells(mixture, group, name == lowest)) for name, mixture in _in_group(summary, group)]
    caption = f"Average over {group_text(summary, group)}, {_LEGEND}"
    return folding_table(caption, "mixture", _AVERAGE_COLUMNS, rows)


def _in_group(summary: Summary, group: str) -> list[tuple[str, MixtureSummary]]:
    """Measured mixtures that count in a group."""
    return [(name, mixture) for name, mixture in summary.measured.items() if mixture.average(group)]


def group_text(summary: Summary, group: str) -> str:
    """A group in words: all 5 domains, or "code" (2 domains)."""
    members = len(summary.groups[group])
    if group == "all" and len(summary.groups) == 1 and members == len(summary.domains) > 1:
        return f"all {members} domains"
    return f'"{group}" ({members} domain{"s" if members != 1 else ""})'


_LEGEND = "nats per token; the lowest average is bold, and so are differences whose interval excludes 0"
_AVERAGE_COLUMNS = [
    *("average log-perplexity", "perplexity", "difference", "95% interval", "seeds with a lower average"),
    "compared with",
]


def _average_cells(mixture: MixtureSummary, group: str, is_lowest: bool) -> list[Cell]:
    average, difference = mixture.average(group), mixture.difference(group)
    mean = average.mean if average else None
    perplexity = math.exp(mean) if mean is not None and mean < _LARGEST_EXPONENT else None
    cells = [Cell(number(mean, _DIGITS), strong=is_lowest), Cell(number(perplexity))]
    if difference is None:
        seeds = f"{average.seeds} measured" if average else NOTHING
        return [*cells, Cell(NOTHING), Cell(NOTHING), Cell(seeds), Cell(NOTHING)]
    lower = sum(value is not None and value < 0 for value in difference.by_seed.values())
    return [
        *cells,
        difference_cell(difference),
        Cell(interval(difference.low, difference.high, _DIGITS)),
        Cell(f"{lower} of {difference.seeds}"),
        Cell(mixture.against),
    ]


def _lowest(summary: Summary, group: str) -> str | None:
    """The mixture with the lowest average, where there are several, of the same seeds."""
    known = summary.averages(group)
    if len(known) < 2 or not have_the_same_seeds(known.values()):
        return None
    return min(known, key=lambda name: known[name].mean or 0.0)


def difference_cell(estimate: Estimate | None, scale: float | None = None) -> Cell:
    """A difference, set strongly where its interval excludes 0; with a `scale` shaded, that long one the deepest."""
    if estimate is None or estimate.mean is None:
        return Cell(NOTHING)
    shade = None if not scale else round(-SHADES * max(-1.0, min(1.0, estimate.mean / scale)))
    return Cell(signed(estimate.mean, _DIGITS), shade=shade, strong=bool(estimate.side))


def difference_table(summary: Summary) -> Table | None:
    """Differences of each domain, shaded; None where there are none."""
    compared = {name: mixture.differences for name, mixture in summary.measured.items() if mixture.differences}
    names = [name for name in summary.domains if any(name in differences.domains for differences in compared.values())]
    if not names:
        return None
    found = [
        abs(estimate.mean)
        for differences in compared.values()
        for estimate in differences.domains.values()
        if estimate.mean is not None
    ]
    largest = max(found, default=0.0)
    rows = [
        Row(name, [difference_cell(differences.domains.get(name), largest) for differences in compared.values()])
        for name in names
    ]
    several = len({summary.mixtures[name].against for name in compared}) > 1
    columns = [f"{name}, to {summary.mixtures[name].against}" if several else name for name in compared]
    to = "what each is compared with" if several else summary.mixtures[next(iter(compared))].against
    caption = (
        f"Difference in log-perplexity to {to}, nats per token: below 0 (blue) is better, above 0 (orange) is worse; "
        "bold where the 95% interval excludes 0"
    )
    return folding_table(caption, "domain", columns, rows)


def log_perplexity_table(summary: Summary) -> Table:
    """Log-perplexity of each domain."""
    caption = "Log-perplexity of each domain, nats per token, mean over seeds; the lowest is bold"
    return _domain_table(summary, caption, lambda mixture: mixture.log_perplexity)


def bits_table(summary: Summary) -> Table | None:
    """Bits per byte of each domain; None where they were not measured."""
    if not any(mixture.bits_per_byte for mixture in summary.measured.values()):
        return None
    caption = "Bits per byte of each domain, mean over seeds; the lowest is bold"
    return _domain_table(summary, caption, lambda mixture: mixture.bits_per_byte)


def _domain_table(
    summary: Summary, caption: str, of: Callable[[MixtureSummary], Mapping[str, Estimate] | None]
) -> Table:
    found = {name: of(mixture) or {} for name, mixture in summary.measured.items()}
    rows = []
    for domain in summary.domains:
        estimates = [values[domain] for values in found.values() if domain in values]
        means = [values[domain].mean if domain in values else None for values in found.values()]
        known = [mean for mean in means if mean is not None]
        lowest = min(known) if len(known) == len(means) > 1 and have_the_same_seeds(estimates) else None
        if any(domain in values for values in found.values()):
            cells = [Cell(number(mean, _DIGITS), strong=mean is not None and mean == lowest) for mean in means]
            rows.append(Row(domain, cells))
    return folding_table(caption, "domain", list(found), rows)


def worst_table(summary: Summary) -> Table | None:
    """Each mixture's worst domain, and the one that it makes worst; None where nothing says so."""
    rows = []
    for name, mixture in summary.measured.items():
        if worst := mixture.worst_domain:
            difference = worst.difference
            ends = (difference.low, difference.high) if difference else (None, None)
            cells = [
                Cell(worst.name),
                Cell(number(worst.log_perplexity.mean, _DIGITS)),
                Cell(worst.difference_name or NOTHING),
                difference_cell(difference),
                Cell(interval(*ends, _DIGITS)),
            ]
            rows.append(Row(name, cells))
    columns = [
        "highest log-perplexity",
        "nats per token",
        "largest difference",
        "difference",
        "95% interval",
    ]
    caption = "The worst domain of each mixture, and the one with the largest difference, which the mixture helps least"
    return folding_table(caption, "mixture", columns, rows) if rows else None


def accuracy_table(summary: Summary) -> Table | None:
    """Few-shot accuracies, tasks by mixtures; None where none was measured."""
    asked = {name: mixture.accuracy for name, mixture in summary.mixtures.items() if mixture.accuracy}
    if not asked:
        return None
    tasks = list(dict.fromkeys(task for values in asked.values() for task in values))
    rows = [
        Row(task, [Cell(spread_text(values.get(task))) for values in asked.values()], is_summary=task == "mean")
        for task in sorted(tasks, key=lambda task: task == "mean")
    ]
    caption = "Few-shot accuracy, mean over seeds (lowest to highest of them); higher is better"
    return folding_table(caption, "task", list(asked), rows)


def spread_text(estimate: Estimate | None, write: Callable[[float], str] = lambda value: number(value, 4)) -> str:
    """The mean; with several seeds the smallest and the largest of them behind it."""
    if estimate is None or estimate.mean is None:
        return NOTHING
    ends = estimate.range
    if ends is None or ends[0] == ends[1]:
        return write(estimate.mean)
    return f"{write(estimate.mean)} ({write(ends[0])} to {write(ends[1])})"
