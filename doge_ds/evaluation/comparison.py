"""Several models side by side: each domain and task, differences to the first model, and whether they are noise.

A difference exceeds the noise where its 95% interval, a bootstrap over the same windows or items for both models,
leaves zero out. That is the noise of the text that was measured on, not that of training: another seed of the same run
can differ by more.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from doge_ds.evaluation.intervals import average_difference
from doge_ds.evaluation.windows import DomainLosses

LOG_PERPLEXITY, ACCURACY = "log-perplexity", "accuracy"
AVERAGE = "average"


@dataclass(frozen=True)
class Measured:
    """What one model got.

    Attributes:
        name: of the model, short.
        domains: its windows of each domain.
        tasks: whether each item of a task was answered right, 0 or 1, [items].
    """

    name: str
    domains: Mapping[str, DomainLosses]
    tasks: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Row:
    """One number of one model.

    Attributes:
        measure: LOG_PERPLEXITY, in nats, of which less is better; or ACCURACY, of which more is.
        of: the domain or task; AVERAGE over all of the measure.
        model: its name.
        value: the number.
        difference: to the first model, whose own is None; with low and high of its 95% interval.
        exceeds_noise: whether the interval leaves zero out; None for the first model, and where there are fewer than
            two windows or items, which say nothing of the noise.
    """

    measure: str
    of: str
    model: str
    value: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    exceeds_noise: bool | None = None


def compare(models: Sequence[Measured], seed: int = 0) -> list[Row]:
    """A row for each measure, domain or task, and model, in this order; the averages last.

    Args:
        models: all measured on the same windows and items; the first is what the others are compared with.
        seed: of the bootstrap.
    """
    rows = []
    for measure in (LOG_PERPLEXITY, ACCURACY):
        sums = [_sums(model, measure) for model in models]
        places = [*sums[0], AVERAGE] if len(sums[0]) > 1 else list(sums[0])
        for place in places:
            chosen = [found if place == AVERAGE else {place: found[place]} for found in sums]
            rows += [
                _row(measure, place, model.name, found, chosen[0] if number else None, seed)
                for number, (model, found) in enumerate(zip(models, chosen, strict=True))
            ]
    return rows


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON objects."""
    return [asdict(row) for row in rows]


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with a line of names above them."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_json(rows))
    return stream.getvalue()


def as_text(rows: Sequence[Row]) -> str:
    """Tables for the terminal: domains or tasks below each other, models side by side."""
    tables = []
    for title, head, lines in _tables(rows):
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        padded = [
            "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in [head, *lines]
        ]
        tables.append("\n".join([title, *padded]))
    return "\n\n".join([*tables, NOTE])


def as_markdown(rows: Sequence[Row]) -> str:
    """The same tables in Markdown."""
    tables = []
    for title, head, lines in _tables(rows):
        table = [f"**{title}**", "", _markdown_line(head), "|---" + "|---:" * (len(head) - 1) + "|"]
        tables.append("\n".join([*table, *map(_markdown_line, lines)]))
    return "\n\n".join([*tables, NOTE]) + "\n"


NOTE = (
    "Differences are to the first model, with 95% intervals of a paired bootstrap; * exceeds the noise of the text "
    "measured on (not that of training seeds)."
)


def _tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and lines of each measure's table."""
    tables = []
    for measure in (LOG_PERPLEXITY, ACCURACY):
        chosen = [row for row in rows if row.measure == measure]
        models = list(dict.fromkeys(row.model for row in chosen))
        cells = {(row.of, row.model): row for row in chosen}
        head, lines = ["task" if measure == ACCURACY else "domain", models[0] if models else ""], []
        for model in models[1:]:
            head += [model, "difference"]
        for place in dict.fromkeys(row.of for row in chosen):
            line = [place, f"{cells[place, models[0]].value:.4f}"]
            for model in models[1:]:
                row = cells[place, model]
                line += [f"{row.value:.4f}", _difference_cell(row)]
            lines.append(line)
        if lines:
            unit = "nats, less is better" if measure == LOG_PERPLEXITY else "more is better"
            tables.append((f"{measure} ({unit})", head, lines))
    return tables


def _difference_cell(row: Row) -> str:
    if row.low is None:
        return f"{row.difference:+.4f}"
    return f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]{'*' if row.exceeds_noise else ' '}"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


def _sums(model: Measured, measure: str) -> dict[str, DomainLosses]:
    """Values to be summed and what they are divided by: nats and tokens of windows, or answers and ones."""
    if measure == LOG_PERPLEXITY:
        return dict(model.domains)
    return {
        task: DomainLosses(np.array(answers, dtype=np.float64), np.ones(len(answers), dtype=np.int64))
        for task, answers in model.tasks.items()
    }


def _row(
    measure: str,
    place: str,
    model: str,
    found: Mapping[str, DomainLosses],
    first: Mapping[str, DomainLosses] | None,
    seed: int,
) -> Row:
    value = math.fsum(math.fsum(losses.nats) / int(losses.tokens.sum()) for losses in found.values()) / len(found)
    if first is None:
        return Row(measure, place, model, value)
    difference, low, high = average_difference(found, first, seed)
    if not math.isfinite(low):
        return Row(measure, place, model, value, difference)
    return Row(measure, place, model, value, difference, low, high, bool(low > 0 or high < 0))
