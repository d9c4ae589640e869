"""Line charts as SVG, drawn with matplotlib; text stays text, and colours are those of the page's style sheet.

Every chart is drawn twice, for wide and for narrow screens: shrinking one drawing to 400 pixels leaves no legible text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from doge_ds.reporting.svg import (
    GRID,
    INK,
    LINE_COLORS,
    LINES,
    MARKERS,
    NARROW,
    WIDE,
    Chart,
    as_svg,
    drawing,
    shorten,
    text_width,
)

DASHES: list[Any] = ["-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2))]

# Pixels: from the plot to its labels, from there to their text, from label to label; a panel's margins.
_LABEL_GAP, _MARK_WIDTH, _LABEL_HEIGHT = 14, 11, 14.5
_TOP, _BOTTOM, _LEFT = 30, 44, 66
_VALUE_WIDTH = 66  # of a space and a number of three digits, like 0.000151
_LONGEST = 200  # characters of a name that are measured


@dataclass(frozen=True)
class Panel:
    """One set of axes over the steps.

    Attributes:
        title, y_label: what is drawn, and its unit.
        series: values of each domain at `steps`, [lines].
        steps: steps done, [lines], at least one.
        height: of the plot, pixels.
        reference: a level to compare with, and its name.
        y_range: lowest and highest value shown; by default those of the lines.
        is_labelled: name each line at its right end; without, all lines look the same.
    """

    title: str
    y_label: str
    steps: np.ndarray
    series: Mapping[str, np.ndarray]
    height: int = 260
    reference: tuple[float, str] | None = None
    y_range: tuple[float, float] | None = None
    is_labelled: bool = True


def draw_chart(
    name: str, panels: Sequence[Panel], order: Sequence[str], description: str, caption: str, points: int
) -> Chart:
    """Draw panels side by side where there is room, below each other where there is not.

    Args:
        name: unique on the page, short; letters and digits.
        panels: one or more. Panels without labels go below the others in both drawings.
        order: domains by importance; the first LINES of those in a panel get a line.
        points: steps that a line is thinned to.
    """
    beside = [panel for panel in panels if panel.is_labelled]
    below = [panel for panel in panels if not panel.is_labelled]
    wide = _draw(f"{name}w", [beside, *([panel] for panel in below)], order, WIDE, points)
    narrow = _draw(f"{name}n", [[panel] for panel in [*beside, *below]], order, NARROW, points // 2)
    return Chart(description, caption, wide, narrow)


def weight_chart(
    name: str,
    steps: np.ndarray,
    weights: Mapping[str, np.ndarray],
    means: Mapping[str, np.ndarray],
    uniform: float,
    order: Sequence[str],
    description: str,
    caption: str,
    points: int,
) -> Chart:
    """Weights of each domain and their running means at `steps`, [lines], on one scale; others as in `draw_chart`."""
    series = [("Weight at each step", weights), ("Running mean, which becomes the mixture", means)]
    largest = max([uniform, *(float(np.nanmax(values, initial=0)) for _, found in series for values in found.values())])
    panels = [
        Panel(title, "weight", steps, found, reference=(uniform, "uniform"), y_range=(0, 1.05 * largest))
        for title, found in series
        if found
    ]
    return draw_chart(name, panels, order, description, caption, points)


def thin(length: int, points: int) -> np.ndarray:
    """Indices of at most `points` (at least 2) of `length` lines, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, max(points, 2))).round().astype(int))


def spread(positions: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Move positions apart so that neighbours keep `distance`, as little as possible, within [low, high] if it fits.

    Positions that are too close form a block around their mean, and blocks that touch are joined.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[tuple[float, list[int]]] = []  # centre, members
    for index in order:
        centre, members = min(max(positions[index], low), high), [index]
        while blocks and centre - blocks[-1][0] < distance * (len(members) + len(blocks[-1][1])) / 2:
            before, others = blocks.pop()
            centre = (before * len(others) + centre * len(members)) / (len(others) + len(members))
            members = others + members
            half = distance * (len(members) - 1) / 2
            centre = max(min(centre, high - half), low + half)
        blocks.append((centre, members))
    moved = [0.0] * len(positions)
    for centre, members in blocks:
        for place, index in enumerate(members):
            moved[index] = centre + distance * (place - (len(members) - 1) / 2)
    return moved


def _draw(name: str, lines_of_panels: Sequence[Sequence[Panel]], order: Sequence[str], width: int, points: int) -> str:
    """One drawing: panels in a row share its width."""
    heights = [max(panel.height for panel in row) + _TOP + _BOTTOM for row in lines_of_panels]
    total = sum(heights)
    with drawing(name, width, total) as figure:
        top = total
        for row, height in zip(lines_of_panels, heights, strict=True):
            top -= height
            for place, panel in enumerate(row):
                each = width / len(row)
                label_width = _label_width(lines_of_panels[0], width)
                box = (place * each + _LEFT, top + _BOTTOM, each - _LEFT - label_width, height - _TOP - _BOTTOM)
                axes = figure.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))
                _draw_panel(axes, panel, order, points, box[2:], label_width)
        return as_svg(figure, name, width, total)


def _label_width(panels: Sequence[Panel], width: int) -> float:
    """Room for the longest label, at most what leaves the plot the larger part."""
    longest = max((text_width(name[:_LONGEST]) for panel in panels for name in panel.series), default=0.0)
    needed = _LABEL_GAP + _MARK_WIDTH + longest + _VALUE_WIDTH
    return min(needed, 0.42 * width / len(panels))


def _draw_panel(
    axes: Axes, panel: Panel, order: Sequence[str], points: int, size: tuple[float, float], label_width: float
) -> None:
    width, height = size
    axes.set_title(panel.title, pad=12)
    axes.set_ylabel(panel.y_label)
    axes.yaxis.set_label_coords(-(_LEFT - 12) / width, 0.5)
    axes.set_xlabel("steps done")
    axes.xaxis.set_major_locator(MaxNLocator(5 if width > 250 else 4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(max(2, round(height / 55))))
    if not panel.is_labelled:
        chosen = thin(len(panel.steps), points)
        mark = "o" if len(chosen) < 2 else ""
        for values in panel.series.values():
            axes.plot(panel.steps[chosen], values[chosen], color=INK, marker=mark, clip_on=False)
    names = [name for name in order if name in panel.series and panel.is_labelled][:LINES]
    rest = [name for name in panel.series if name not in names and panel.is_labelled]
    if rest:
        _draw_band(axes, panel.steps, np.array([panel.series[name] for name in rest]), points)
    for name in names:
        _draw_line(axes, panel.steps, panel.series[name], order.index(name), points)
    if panel.reference:
        level, word = panel.reference
        axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(word, (1, level), (-3, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=11)
    if panel.y_range:
        axes.set_ylim(panel.y_range)
    axes.set_xlim(0, panel.steps[-1])
    if panel.is_labelled:
        _label_lines(axes, panel, names, rest, order, (*size, label_width))


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray, style: int, points: int) -> None:
    """Through at most `points` of the steps that have a value: a domain may be on every n-th logged step only."""
    finite = np.flatnonzero(np.isfinite(values))
    chosen = finite[thin(len(finite), points)]
    axes.plot(
        steps[chosen],
        values[chosen],
        color=LINE_COLORS[style % LINES],
        marker=MARKERS[style % LINES],
        linestyle=DASHES[style % len(DASHES)],
        markevery=max(1, len(chosen) // 4),
        clip_on=False,
    )


def _draw_band(axes: Axes, steps: np.ndarray, values: np.ndarray, points: int) -> None:
    """From the smallest to the largest of lines that are too many to draw, [lines, steps]."""
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    chosen = known[thin(len(known), points)]
    low, high = np.nanmin(values[:, chosen], axis=0), np.nanmax(values[:, chosen], axis=0)
    axes.fill_between(steps[chosen], low, high, color=GRID, alpha=0.6, linewidth=0.8)


def _label_lines(
    axes: Axes,
    panel: Panel,
    names: Sequence[str],
    rest: Sequence[str],
    order: Sequence[str],
    size: tuple[float, float, float],
) -> None:
    """Name, mark and last value of every line at its right end, moved apart where they would overlap."""
    width, height, label_width = size
    room = label_width - _LABEL_GAP - _MARK_WIDTH
    ends: list[tuple[float, str, int | None]] = []
    last = {name: values[np.isfinite(values)][-1:].tolist() for name, values in panel.series.items()}
    for name in names:
        for value in last[name]:  # none where no number is finite
            text = f" {value:#.3g}"
            ends.append((value, shorten(name, room - text_width(text)) + text, order.index(name)))
    if of_rest := [value for name in rest for value in last[name]]:
        ends.append((sum(of_rest) / len(of_rest), f"{len(rest)} others", None))
    low, high = axes.get_ylim()
    pixels = [height * (value - low) / (high - low) for value, _, _ in ends]
    for (_, text, style), end, place in zip(ends, pixels, spread(pixels, _LABEL_HEIGHT, 0, height), strict=True):
        color = INK if style is None else LINE_COLORS[style % LINES]
        free: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        y = place / height
        axes.plot([1, 1 + (_LABEL_GAP - 3) / width], [end / height, y], color=GRID, linewidth=0.8, zorder=1, **free)
        if style is not None:
            axes.plot([1 + (_LABEL_GAP + 3) / width], [y], marker=MARKERS[style % LINES], color=color, **free)
        axes.text(1 + (_LABEL_GAP + _MARK_WIDTH) / width, y, text, va="center_baseline", color=color, **free)
