"""Heat maps of cosines: which rows, in which order, in which shades."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.cluster import hierarchy  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

from doge_ds.reporting.cells import MINUS, NOTHING, SHADES, Cell, Row, Table

# A matrix of more rows is no picture any more, and 200 x 200 cells would be half of the page's size.
HEAT_MAP_ROWS = 40


def similar_side_by_side(cosines: np.ndarray) -> list[int]:
    """An order of the rows of a square matrix, [rows, rows], in which similar ones are neighbours.

    Average linkage on 1 - cosine, optimal leaf order; what is not finite counts as 0.
    """
    if len(cosines) < 3:
        return list(range(len(cosines)))
    distances = 1 - np.nan_to_num(cosines)
    np.fill_diagonal(distances, 0)
    condensed = squareform((distances + distances.T) / 2)
    tree = hierarchy.linkage(condensed, method="average", optimal_ordering=True)
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]


def heat_table(
    caption: str, rows: Sequence[str], columns: Sequence[str], cosines: np.ndarray, notes: Sequence[str]
) -> Table:
    """Shaded from the smallest to the largest value, but for those of a row with itself.

    Args:
        cosines: [rows, columns], NaN where there is none.
        notes: what stands behind each row's name.
    """
    shades = shades_of(rows, columns, cosines)
    found = []
    for i, row in enumerate(rows):
        cells = [
            Cell("1") if row == column else Cell(signed_cosine(float(cosines[i, j])), shade=shades[i][j])
            for j, column in enumerate(columns)
        ]
        found.append(Row(row, cells, note=notes[i]))
    return Table(caption, "", columns, found, kind="heat")


def shades_of(rows: Sequence[str], columns: Sequence[str], cosines: np.ndarray) -> list[list[int | None]]:
    """0 to SHADES of each cell, None of what is not finite and of a row with itself; [rows, columns]."""
    is_other = np.array([[row != column for column in columns] for row in rows], dtype=bool).reshape(cosines.shape)
    others = cosines[is_other & np.isfinite(cosines)]
    low, high = (float(others.min()), float(others.max())) if len(others) else (0.0, 1.0)
    return [
        [_shade(float(value), low, high) if other else None for value, other in zip(*line, strict=True)]
        for line in zip(cosines, is_other, strict=True)
    ]


def signed_cosine(value: float) -> str:
    """.12 or \N{MINUS SIGN}.12: the leading 0 says nothing and costs a quarter of a narrow cell."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{abs(value):.2f}".removeprefix("0")
    return f"{MINUS}{text}" if value < 0 and text != ".00" else text


def _shade(value: float, low: float, high: float) -> int | None:
    if not math.isfinite(value):
        return None
    return round(SHADES * (value - low) / (high - low)) if high > low else 0
