"""metrics.jsonl: columns, cosines, what is absent, and what is damaged."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_ds.errors import RunError
from doge_ds.reporting.metrics import read_metrics


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_null_and_absent_are_not_a_number_and_true_is_one(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.jsonl",
        {"step": 5, "loss/a": 2.0, "applied": True},
        {"step": 9, "loss/a": None, "loss/b": 3, "applied": False},
        {"step": 10, "loss/b": 4.0},
    )
    metrics = read_metrics(path)
    assert metrics.steps.tolist() == [5, 9, 10]
    np.testing.assert_array_equal(metrics.columns["loss/a"], [2.0, math.nan, math.nan])
    np.testing.assert_array_equal(metrics.columns["loss/b"], [math.nan, 3.0, 4.0])
    np.testing.assert_array_equal(metrics.columns["applied"], [1.0, 0.0, math.nan])
    assert metrics.names("loss/") == ["a", "b"]
    assert (metrics.last("loss/a"), metrics.last("loss/b"), metrics.last("loss/c")) == (2.0, 4.0, None)
    assert metrics.middle("loss/b") == 3.5


def test_what_is_there_but_no_finite_number_is_remembered_and_what_is_absent_is_not(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        '{"step": 1, "a": 1, "b": Infinity, "c": null}\n'
        '{"step": 2, "a": -Infinity, "c": 1e999}\n'
        f'{{"step": 3, "a": NaN, "b": {"9" * 400}, "c": -{"9" * 5000}, "d": 1e300}}\n'
        '{"step": 4, "b": 2, "d": 1e299}\n'
    )
    metrics = read_metrics(tmp_path / "m.jsonl")
    assert metrics.not_finite == {"a": [1, 2], "b": [0, 2], "c": [0, 1, 2], "d": [2]}
    expected = {"a": [1, None, None, None], "b": [None, None, None, 2], "c": [None] * 4, "d": [None, None, None, 1e299]}
    for name, values in expected.items():
        np.testing.assert_array_equal(metrics.columns[name], np.array(values, dtype=float))


def test_whole_numbers_are_exact(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path / "m.jsonl", {"step": 2**53, "tokens": 10**15 + 1}))
    assert (metrics.last("step"), metrics.last("tokens")) == (2**53, 10**15 + 1)


def test_each_cosine_is_the_mean_over_the_lines_that_have_its_pair(tmp_path: Path) -> None:
    losses = {"loss/a": 1.0, "loss/b": 1.0, "loss/c": 1.0}
    first, second = np.array([[1, 0, 0], [3, 4, 0], [0, 0, 0]]), np.array([[2, 0, 0], [0, 5, 0], [-1, 0, 0]])
    broken: list[list[float | None]] = [[None, 1, 1], [1, 1, 0.5], [1, 0.5, 1]]
    metrics = read_metrics(
        write(
            tmp_path / "m.jsonl",
            {"step": 1, **losses, "gram": (first @ first.T).tolist()},
            {"step": 2, **losses, "gram": broken},
            {"step": 3, **losses, "gram": (second @ second.T).tolist()},
            {"step": 4, **losses, "gram": [[None] * 3] * 3},
            {"step": 5, **losses, "gram": None},
            {"step": 6, **losses},
        )
    )
    assert metrics.cosine_lines == 3
    assert metrics.cosine_rows == ["a", "b", "c"]
    # a.b: 0.6 and 0; c is 0 at first, so a.c counts once: -1. Of the second line only b.c is known.
    expected = [[1, 0.3, -1], [0.3, 1, 0.25], [-1, 0.25, 1]]
    np.testing.assert_allclose(metrics.cosines, expected, atol=1e-12)  # type: ignore[arg-type]
    assert metrics.cosine_counts.tolist() == [[2, 2, 1], [2, 3, 2], [1, 2, 2]]


def test_a_matrix_of_some_rows_names_them(tmp_path: Path) -> None:
    metrics = read_metrics(
        write(
            tmp_path / "m.jsonl",
            {"step": 1, "loss/c": 1.0, "loss/t": 1.0, "gram_rows": ["t", "c"], "gram": [[4, 1], [1, 1]]},
            {"step": 2, "loss/a": 1.0, "loss/t": 1.0, "gram": [[1, -1], [-1, 4]]},
            {"step": 3, "loss/a": 1.0, "loss/c": 1.0, "gram_rows": ["a", "c", "t"], "gram": np.eye(3).tolist()},
            {"step": 4, "loss/a": 1.0, "loss/c": 1.0, "loss/b": 1.0},
            {"step": 5, "loss/b": 1.0, "gram_rows": ["b"], "gram": [[1]]},
        )
    )
    assert metrics.cosine_rows == ["t", "c", "a", "b"]
    nan = math.nan
    expected = [[1, 0.25, -0.25, nan], [0.25, 1, 0, nan], [-0.25, 0, 1, nan], [nan, nan, nan, 1]]
    np.testing.assert_allclose(metrics.cosines, expected)  # type: ignore[arg-type]
    assert metrics.cosine_counts.tolist() == [[3, 2, 2, 0], [2, 2, 1, 0], [2, 1, 2, 0], [0, 0, 0, 1]]
    assert metrics.not_finite == {}


def test_numbers_of_any_size_make_cosines_without_complaint(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        f'{{"step": 1, "loss/a": 1, "loss/b": 1, "gram": [[1e308, 1e308], [1e308, 1e308]]}}\n'
        f'{{"step": 2, "loss/a": 1, "loss/b": 1, "gram": [[{"9" * 400}, Infinity], [1e-320, 1e-320]]}}\n'
    )
    metrics = read_metrics(tmp_path / "m.jsonl")
    np.testing.assert_allclose(metrics.cosines, np.ones((2, 2)))  # type: ignore[arg-type]


def test_a_gradient_that_is_always_zero_has_no_cosine(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path / "m", {"step": 1, "loss/a": 1, "loss/b": 1, "gram": [[4.0, 0.0], [0.0, 0]]}))
    np.testing.assert_array_equal(metrics.cosines, [[1, math.nan], [math.nan, math.nan]])  # type: ignore[arg-type]


def test_no_file_is_no_line_and_no_gram_no_cosines(tmp_path: Path) -> None:
    nothing = read_metrics(tmp_path / "nowhere")
    assert len(nothing.steps) == 0
    assert nothing.cosines is None
    assert nothing.written is None
    assert read_metrics(write(tmp_path / "m.jsonl", {"step": 1, "loss": 3.0})).cosines is None


def test_a_last_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", {"step": 1, "loss": 3.0})
    whole = read_metrics(path)
    assert not whole.last_line_was_cut
    with path.open("a") as stream:
        stream.write('{"step": 2, "lo')
    cut = read_metrics(path)
    assert cut.last_line_was_cut
    assert cut.steps.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"step": 2, "lo', "is no JSON"),
        ("", "is no JSON"),
        ("[1, 2]", "holds no JSON object"),
        ('{"loss": 1}', "has no step, but null"),
        ('{"step": true}', "has no step, but true"),
        ('{"step": 1}', "step 1 follows step 1"),
        ('{"step": 2, "loss": "3"}', 'loss is no number, but "3"'),
        ('{"step": 2, "loss": [3]}', "loss is no number, but [3]"),
        ('{"step": 2, "loss/a": 1, "gram": [[1, 2], [3, 4]]}', "gram has the shape [2, 2], the line has 1 losses"),
        ('{"step": 2, "loss/a": 1, "gram": [[1], [3, 4]]}', "gram is no matrix of numbers"),
        ('{"step": 2, "loss/a": 1, "gram": "x"}', "gram is no matrix of numbers"),
        ('{"step": 1e3}', "has no step, but 1000.0"),
        ('{"step": 99999999999999999999}', "has no step, but 1e+20"),
        (
            '{"step": 2, "gram_rows": ["a"], "gram": [[1, 2], [3, 4]]}',
            "gram has the shape [2, 2], the line has 1 gram_",
        ),
        ('{"step": 2, "gram_rows": "ab", "gram": [[1, 2], [3, 4]]}', 'gram_rows is no list of names, but "ab"'),
        ('{"step": 2, "gram_rows": [1], "gram": [[1]]}', "gram_rows is no list of names, but [1]"),
        ('{"step": 2, "gram_rows": ["a", "a"], "gram": [[1, 2], [3, 4]]}', "gram_rows names a row twice"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    good = '{"step": 1, "loss/a": 1, "loss/b": 1, "gram": [[1, 0], [0, 1]]}'
    (tmp_path / "m.jsonl").write_text(f"{good}\n{line}\n" + '{"step": 3}\n')
    with pytest.raises(RunError) as caught:
        read_metrics(tmp_path / "m.jsonl")
    assert str(caught.value).startswith(f"{tmp_path / 'm.jsonl'}, line 2: {problem}")


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1, "loss": "\xff\xfe"}\n')
    with pytest.raises(RunError, match="line 1: is no JSON"):
        read_metrics(tmp_path / "m.jsonl")
