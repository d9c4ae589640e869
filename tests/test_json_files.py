"""JSON files: strict, and whole or not there."""

import json
import math
from pathlib import Path

import pytest

from doge_ds.json_files import without_nan, write_json


def test_numbers_that_are_not_finite_become_null_at_any_depth(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": [1.5, math.inf, {"b": (math.nan, "x")}], "c": -math.inf, "d": None})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [1.5, None, {"b": [None, "x"]}], "c": None, "d": None}
    assert without_nan({"a": 2}) == {"a": 2}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    write_json(file, {"old": 1})
    with pytest.raises(TypeError):
        write_json(file, {"new": object()})
    assert json.loads(file.read_text()) == {"old": 1}
