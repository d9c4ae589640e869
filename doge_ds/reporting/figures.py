"""Line charts as SVG, drawn with matplotlib; text stays text, and colours are those of the page's style sheet.

Every chart is drawn twice, for wide and for narrow screens: shrinking one drawing to 400 pixels leaves no legible text.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Direct labels of more lines than these do not fit; the others become one band.
LINES = 10
WIDE, NARROW = 920, 360  # CSS pixels
MARKERS = "osD^vPX<>p"
DASHES: list[Any] = ["-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2))]

# Matplotlib is given colours that nobody would choose; in the SVG they become the style sheet's variables.
_INK, _GRID = "#010203", "#010204"
_LINES = [f"#0102{16 + number}" for number in range(LINES)]
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)"} | {
    color: f"var(--line-{number})" for number, color in enumerate(_LINES)
}

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # to measure with; the page's font is narrower
    "font.size": 12,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}

# Pixels: from the plot to its labels, from there to their text, from label to label; a character; a panel's margins.
_LABEL_GAP, _MARK_WIDTH, _LABEL_HEIGHT, _CHARACTER_WIDTH = 14, 11, 14.5, 6.8
_TOP, _BOTTOM, _LEFT = 30, 44, 66
_VALUE_LENGTH = 9  # characters of a space and a number of three digits, like 0.000151


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


@dataclass(frozen=True)
class Chart:
    """One chart in both drawings.

    Attributes:
        description: the key numbers in words, for those who do not see it.
        caption: what is drawn.
        wide, narrow: SVG elements.
    """

    description: str
    caption: str
    wide: str
    narrow: str


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
    style: Any = {**_STYLE, "svg.hashsalt": name}  # without it the ids would differ from run to run
    with mpl.rc_context(style):
        figure = Figure(figsize=(width / 72, total / 72))
        FigureCanvasSVG(figure)
        top = total
        for row, height in zip(lines_of_panels, heights, strict=True):
            top -= height
            for place, panel in enumerate(row):
                each = width / len(row)
                label_width = _label_width(lines_of_panels[0], width)
                box = (place * each + _LEFT, top + _BOTTOM, each - _LEFT - label_width, height - _TOP - _BOTTOM)
                axes = figure.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))
                _draw_panel(axes, panel, order, points, box[2:], label_width)
        return _as_svg(figure, name, width, total)


def _label_width(panels: Sequence[Panel], width: int) -> float:
    """Room for the longest label, at most what leaves the plot the larger part."""
    longest = max((len(name) for panel in panels for name in panel.series), default=0)
    needed = _LABEL_GAP + _MARK_WIDTH + _CHARACTER_WIDTH * (longest + _VALUE_LENGTH)
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
            axes.plot(panel.steps[chosen], values[chosen], color=_INK, marker=mark, clip_on=False)
    names = [name for name in order if name in panel.series and panel.is_labelled][:LINES]
    rest = [name for name in panel.series if name not in names and panel.is_labelled]
    if rest:
        _draw_band(axes, panel.steps, np.array([panel.series[name] for name in rest]), points)
    for name in names:
        _draw_line(axes, panel.steps, panel.series[name], order.index(name), points)
    if panel.reference:
        level, word = panel.reference
        axes.axhline(level, color=_INK, linewidth=1, linestyle=(0, (1, 2)))
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
        color=_LINES[style % LINES],
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
    axes.fill_between(steps[chosen], low, high, color=_GRID, alpha=0.6, linewidth=0.8)


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
    limit = round((label_width - _LABEL_GAP - _MARK_WIDTH) / _CHARACTER_WIDTH)
    ends: list[tuple[float, str, int | None]] = []
    last = {name: values[np.isfinite(values)][-1:].tolist() for name, values in panel.series.items()}
    for name in names:
        for value in last[name]:  # none where no number is finite
            text = f" {value:#.3g}"
            ends.append((value, _short(name, limit - len(text)) + text, order.index(name)))
    if of_rest := [value for name in rest for value in last[name]]:
        ends.append((sum(of_rest) / len(of_rest), f"{len(rest)} others", None))
    low, high = axes.get_ylim()
    pixels = [height * (value - low) / (high - low) for value, _, _ in ends]
    for (_, text, style), end, place in zip(ends, pixels, spread(pixels, _LABEL_HEIGHT, 0, height), strict=True):
        color = _INK if style is None else _LINES[style % LINES]
        free: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        y = place / height
        axes.plot([1, 1 + (_LABEL_GAP - 3) / width], [end / height, y], color=_GRID, linewidth=0.8, zorder=1, **free)
        if style is not None:
            axes.plot([1 + (_LABEL_GAP + 3) / width], [y], marker=MARKERS[style % LINES], color=color, **free)
        axes.text(1 + (_LABEL_GAP + _MARK_WIDTH) / width, y, text, va="center_baseline", color=color, **free)


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def _as_svg(figure: Figure, name: str, width: float, height: float) -> str:
    """The <svg> element alone, its ids unique on the page, its colours the style sheet's."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the measuring font lacks; the browser has others
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Type": None, "Format": None},
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Two thirds of the size: tenths of a pixel, no names for groups, no line a point, and the page names the font.
    text = re.sub(r"<[a-z][^>]*>", lambda tag: re.sub(r"(\d\.\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"\s*\n\s*(?=[LCQMz\"])", "", text)
    text = re.sub(r"\n\s*", "\n", text).replace("xlink:href", "href")
    text = text.replace(f" font-family: '{_STYLE['font.family']}';", "")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return re.sub(
        r"<svg [^>]*>",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        text,
        count=1,
    ).strip()
