"""JSON files: strict, and whole or not there."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from doge_ds.errors import ConfigError
from doge_ds.json_files import copy_contents, parse_json, read_json_object, without_nan, write_json


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": 1, "b": {"c": 2, "c": 3}}', "is no JSON of ours (it says 'c' twice)"),
        (b'{"a": NaN}', "is no JSON of ours (NaN is no number"),
        (b'{"a": -Infinity}', "is no JSON of ours (-Infinity is no number"),
        (b'{"a": 1e999}', "is no JSON of ours (1e999 is no number"),
        (b'{"a": 9223372036854775808}', "is a number of 19 digits, more than 64 bits hold"),
        (b'{"a": -' + b"9" * 5000 + b"}", "is a number of 5001 digits, more than 64 bits hold"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "is no JSON of ours (it is nested deeper than 64)"),
        (b'{"a": ' * 100_000, "is no JSON of ours (it is nested too deeply)"),
        (b'{"a": "\\ud83d"}', "is no JSON of ours (it has \\ud83d, half of a character)"),
        (b'{"\\udc00": 1}', "is no JSON of ours (it has \\udc00, half of a character)"),
        (b'\xef\xbb\xbf{"a": 1}', "is no JSON of ours (it begins with a byte order mark)"),
        ('{"a": 1}'.encode("utf-16"), "is no UTF-8 text"),
        (b'{"a": "\xed\xa0\x80"}', "is no UTF-8 text"),
        (b'{"a": 1}\0', "line 1, column 9: is no JSON (Extra data)"),
        (b"", "line 1, column 1: is no JSON (Expecting value)"),
        (b"[1]", "holds no JSON object"),
    ],
)
def test_what_is_refused_and_why(tmp_path: Path, text: bytes, problem: str) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_json_object(tmp_path / "x.json")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_taken() -> None:
    largest = {"a": [2**63 - 1, -(2**63), 1e308, -0.0], "\N{GRINNING FACE}": "\\ud83d"}
    assert parse_json(json.dumps(largest)) == largest
    deep: Any = 1
    for _ in range(63):
        deep = [deep]
    assert parse_json(json.dumps({"a": deep})) == {"a": deep}
    found = parse_json(f"[NaN, -Infinity, 1e999, {'9' * 18}, {'9' * 19}, -{'9' * 5000}]", any_number=True)
    assert math.isnan(found[0])
    assert found[1:] == [-math.inf, math.inf, 10**18 - 1, 1e19, -math.inf]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "folder", "nowhere/file"])
def test_a_path_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json_object(tmp_path / name)


def test_a_copy_has_the_files_and_new_files_rights(tmp_path: Path) -> None:
    (tmp_path / "from/inner").mkdir(parents=True)
    (tmp_path / "from/inner/a").write_bytes(b"1")
    (tmp_path / "from/inner/a").chmod(0o400)
    (tmp_path / "from").chmod(0o500)
    before = os.umask(0o027)
    try:
        copy_contents(tmp_path / "from", tmp_path / "to")
        copy_contents(tmp_path / "from", tmp_path / "to")
    finally:
        os.umask(before)
    assert (tmp_path / "to/inner/a").read_bytes() == b"1"
    assert [(tmp_path / place).stat().st_mode & 0o777 for place in ("to", "to/inner", "to/inner/a")] == [
        0o750,
        0o750,
        0o640,
    ]
    with pytest.raises(FileNotFoundError):
        copy_contents(tmp_path / "nowhere", tmp_path / "to")


def test_others_whole_numbers_are_kept_as_far_as_64_bits_hold_them() -> None:
    numbers = [2**63 - 1, -(2**63), 1234567890123456789, 2**63]
    found = parse_json(json.dumps(numbers), any_number=True)
    assert found == [*numbers[:3], float(2**63)]
    assert [type(value) for value in found] == [int, int, int, float]
