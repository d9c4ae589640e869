"""Shades and order of cosines."""

import numpy as np

from doge_ds.reporting.cells import NOTHING, SHADES
from doge_ds.reporting.heat_map import heat_table, shades_of, similar_side_by_side


def test_shades_go_from_the_smallest_to_the_largest_but_for_a_row_with_itself() -> None:
    cosines = np.array([[1.0, -0.5, 0.3], [-0.5, 1.0, np.nan]])
    assert shades_of(["a", "b"], ["a", "b", "target"], cosines) == [[None, 0, SHADES], [0, None, None]]
    assert shades_of(["a", "b"], ["c"], np.array([[0.2], [0.2]])) == [[0], [0]]  # all the same


def test_a_table_of_rows_and_other_columns() -> None:
    table = heat_table("caption", ["a", "b"], ["t"], np.array([[0.25], [np.nan]]), ["", "target"])
    assert [[cell.text for cell in row.cells] for row in table.rows] == [[".25"], [NOTHING]]
    assert [row.note for row in table.rows] == ["", "target"]
    assert (table.kind, list(table.columns)) == ("heat", ["t"])


def test_similar_rows_are_neighbours() -> None:
    vectors = np.array([[1, 0, 0.1], [0, 1, 0], [1, 0.1, 0], [0.1, 1, 0.1], [0, 0, 1]])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = similar_side_by_side(vectors @ vectors.T)
    assert sorted(order) == list(range(5))
    assert abs(order.index(0) - order.index(2)) == abs(order.index(1) - order.index(3)) == 1
    assert sorted(similar_side_by_side(np.full((4, 4), np.nan))) == [0, 1, 2, 3]
    assert similar_side_by_side(np.eye(2)) == [0, 1]
