"""A matplotlib figure as one SVG element: text stays text, and colours are those of the page's style sheet."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

WIDE, NARROW = 920, 360  # CSS pixels, of a drawing for wide and of one for narrow screens
_NARROWEST = 3.0  # pixels of a character like i
# Lines that colours and marks tell apart; direct labels of more do not fit, and the others become one band.
LINES = 10
MARKERS = "osD^vPX<>p"

# Matplotlib is given colours that nobody would choose; in the SVG they become the style sheet's variables.
INK, GRID, PAPER = "#010203", "#010204", "#010205"
LINE_COLORS = [f"#0102{16 + number}" for number in range(LINES)]
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    color: f"var(--line-{number})" for number, color in enumerate(LINE_COLORS)
}

STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # to measure with; the page's font is narrower
    "font.size": 12,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}
_FONT = FontProperties(family="DejaVu Sans", size=12)


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


@contextmanager
def drawing(name: str, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many CSS pixels, in the page's style while the block lasts; `name` as in `as_svg`."""
    style: Any = {**STYLE, "svg.hashsalt": name}  # without it the ids would differ from run to run
    with mpl.rc_context(style):
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        yield figure


@lru_cache(maxsize=4096)  # names stand in several charts
def text_width(text: str) -> float:
    """Pixels that a text takes in the measuring font."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the measuring font lacks
        return float(text_to_path.get_text_width_height_descent(text, _FONT, ismath=False)[0])


def shorten(text: str, pixels: float) -> str:
    """As much of it as so many pixels take; where it is cut, an ellipsis says so."""
    kept = text[: int(pixels / _NARROWEST) + 1]
    if len(kept) == len(text) and text_width(text) <= pixels:
        return text
    while kept and text_width(f"{kept}\N{HORIZONTAL ELLIPSIS}") > pixels:
        kept = kept[:-1]
    return f"{kept}\N{HORIZONTAL ELLIPSIS}"


def as_svg(figure: Figure, name: str, width: float, height: float) -> str:
    """The <svg> element alone, its colours the style sheet's.

    Args:
        name: unique on the page, short; letters and digits. Its ids begin with it.
    """
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
    text = text.replace(f" font-family: '{STYLE['font.family']}';", "")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return re.sub(
        r"<svg [^>]*>",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        text,
        count=1,
    ).strip()
