"""Dots with their intervals as whiskers, a row each: differences and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from doge_ds.reporting.cells import MINUS, signed
from doge_ds.reporting.summaries import Estimate
from doge_ds.reporting.svg import (
    INK,
    LINE_COLORS,
    NARROW,
    PAPER,
    WIDE,
    Chart,
    as_svg,
    drawing,
    shorten,
    text_width,
)

# Pixels: a row, a panel's margins, from the plot to its labels.
_ROW, _TOP, _BOTTOM, _GAP = 24, 30, 48, 10
_LONGEST = 200  # characters of a name that are measured
_SMALLEST_SPAN = 1e-6  # of the axis, where all is the same
# Axes overflow before floats do.
_INFINITE = 1e300


@dataclass(frozen=True)
class IntervalPanel:
    """Dots over each other on one axis.

    Attributes:
        title: what they are of.
        rows: the numbers by name; those without a mean are left out.
    """

    title: str
    rows: dict[str, Estimate]


def draw_intervals(
    name: str, panels: Sequence[IntervalPanel], x_label: str, description: str, caption: str
) -> Chart | None:
    """Panels below each other on one scale with 0 in it; None where nothing is known.

    Args:
        name: unique on the page, short; letters and digits.
    """
    known = [
        IntervalPanel(panel.title, {name: row for name, row in panel.rows.items() if _ends(row)}) for panel in panels
    ]
    known = [panel for panel in known if panel.rows]
    if not known:
        return None
    wide, narrow = (_draw(f"{name}{short}", known, x_label, width) for short, width in (("w", WIDE), ("n", NARROW)))
    return Chart(description, caption, wide, narrow)


def _ends(estimate: Estimate) -> tuple[float, float] | None:
    """Smallest and largest number that a row shows; None where its mean is no number that an axis can hold."""
    if estimate.mean is None or abs(estimate.mean) >= _INFINITE:
        return None
    found = [estimate.mean, *_whisker(estimate), *_seeds(estimate)]
    return min(found), max(found)


def _whisker(estimate: Estimate) -> tuple[float, ...]:
    ends = [end for end in (estimate.low, estimate.high) if end is not None and abs(end) < _INFINITE]
    return tuple(ends) if len(ends) == 2 else ()


def _seeds(estimate: Estimate) -> list[float]:
    return [value for value in estimate.by_seed.values() if value is not None and abs(value) < _INFINITE]


def _draw(name: str, panels: Sequence[IntervalPanel], x_label: str, width: int) -> str:
    heights = [_ROW * len(panel.rows) + _TOP + _BOTTOM for panel in panels]
    total = sum(heights)
    names = [row for panel in panels for row in panel.rows]
    left = min(_GAP + max(text_width(name[:_LONGEST]) for name in names) + 1, 0.32 * width)
    texts = [_text(row, width) for panel in panels for row in panel.rows.values()]
    right = _GAP + max(map(text_width, texts)) + 1
    ends = [pair for panel in panels for row in panel.rows.values() if (pair := _ends(row))]
    low, high = min(0.0, *(pair[0] for pair in ends)), max(0.0, *(pair[1] for pair in ends))
    margin = max(0.06 * (high - low), _SMALLEST_SPAN)
    with drawing(name, width, total) as figure:
        top = total
        for panel, height in zip(panels, heights, strict=True):
            top -= height
            plot_width, plot_height = width - left - right, height - _TOP - _BOTTOM
            box = (left / width, (top + _BOTTOM) / total, plot_width / width, plot_height / total)
            axes = figure.add_axes(box)
            axes.set_xlim(low - margin, high + margin)
            axes.set_xlabel(x_label)
            axes.xaxis.set_major_locator(MaxNLocator(7 if width == WIDE else 3))
            _draw_panel(axes, panel, width, plot_width, left)
        return as_svg(figure, name, width, total)


def _draw_panel(axes: Axes, panel: IntervalPanel, width: int, plot_width: float, left: float) -> None:
    axes.text(
        -left / plot_width, 1 + 12 / (_ROW * len(panel.rows)), shorten(panel.title, width), transform=axes.transAxes
    )
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", MINUS)))
    axes.axvline(0, color=INK, linewidth=1)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center_baseline", "clip_on": False}
    for place, (name, row) in enumerate(panel.rows.items()):
        color = {-1: LINE_COLORS[0], 1: LINE_COLORS[1]}.get(row.side or 0, INK)
        axes.text(-_GAP / plot_width, place, shorten(name, left - _GAP), ha="right", **beside)
        axes.text(1 + _GAP / plot_width, place, _text(row, width), color=color, **beside)
        if ends := _whisker(row):
            axes.plot(ends, (place, place), color=color, linewidth=2)
        seeds = _seeds(row)
        if len(seeds) > 1:
            axes.plot(seeds, [place + 0.3] * len(seeds), color=color, alpha=0.6, marker="|", markersize=5, linestyle="")
        # Filled where the interval excludes 0, for those who do not see colours.
        axes.plot([row.mean or 0.0], [place], color=color, marker="o", markerfacecolor=color if row.side else PAPER)


def _text(row: Estimate, width: int) -> str:
    """What stands at a row's right end: on wide drawings the interval, too."""
    text = signed(row.mean or 0.0, 4)
    if width == WIDE and row.low is not None and row.high is not None:
        text += f" ({signed(row.low, 4)} to {signed(row.high, 4)})"
    return text
