"""What the report's tables are made of, and how it writes numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# A screenful; the rows below it are folded away.
ROWS_SHOWN = 30
SHADES = 10
NOTHING, MINUS = "\N{EM DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it says.
        bar: length of its bar, 0 to 1.
        shade: 0 to SHADES; of differences those for the worse have another colour, -1 to -SHADES.
        strong: whether the text is set strongly.
    """

    text: str
    bar: float | None = None
    shade: int | None = None
    strong: bool = False


@dataclass(frozen=True)
class Row:
    """A row under its header; `note` stands behind the header."""

    header: str
    cells: Sequence[Cell]
    note: str = ""
    is_summary: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `kind` is its CSS class; `folded` are the rows that a reader has to ask for."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[Row]
    kind: str = "numbers"
    folded: Sequence[Row] = field(default_factory=list)


def number(value: float | None, digits: int = 2) -> str:
    """1,234.56; above a billion in powers of ten; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.3g}" if abs(value) >= 1e9 else f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """Three digits, or all of a larger number's: 1,235, 10.0, 0.0380; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) < 1e-3:
        return f"{value:.3g}"
    return number(value, max(0, 2 - math.floor(math.log10(abs(value)))))


def signed(value: float, digits: int = 2) -> str:
    """+1.20 or, with a true minus sign, \N{MINUS SIGN}1.20."""
    text = number(abs(value), digits)
    return f"{MINUS if value < 0 else '+'}{text}" if text.strip("0.,") else text


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """Both ends signed; a dash where one is missing."""
    return NOTHING if low is None or high is None else f"{signed(low, digits)} to {signed(high, digits)}"


def duration(seconds: float | None) -> str:
    """2 h 05 min, or 3 min 20 s, or 12.3 s."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def folding_table(
    caption: str, corner: str, columns: Sequence[str], rows: Sequence[Row], kind: str = "numbers"
) -> Table:
    """A table of the first ROWS_SHOWN rows with the others folded; a few more than that are not worth folding."""
    shown = len(rows) if len(rows) <= ROWS_SHOWN + 5 else ROWS_SHOWN
    return Table(caption, corner, columns, rows[:shown], kind, rows[shown:])
