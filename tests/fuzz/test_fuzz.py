"""Spoilt input works or is refused in one line: 300 cases, the same ones each time. benchmarks/fuzz.py draws 10,000."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.fuzz import run_kind
from doge_ds.errors import ConfigError
from tests.fuzz.kinds import KINDS, VALID, Kind, fresh_folder, outcome
from tests.fuzz.mutations import files

ROOT = Path(__file__).resolve().parents[2]
CASES = 300
# A page is drawn of a run whose files can be read; that takes 100 times as long as reading a configuration.
DRAWN = ("metrics", "results", "facts", "configuration of a run", "selection", "comparison")


def cases_of(name: str) -> int:
    """This kind's share of the cases."""
    drawn = [kind for kind in KINDS if kind.startswith(DRAWN)]
    others = [kind for kind in KINDS if kind not in drawn]
    if name in drawn:
        return 10
    share, rest = divmod(CASES - 10 * len(drawn), len(others))
    return share + (others.index(name) < rest)


@pytest.mark.parametrize("name", KINDS)
def test_spoilt_input_works_or_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind, count = KINDS[name], 0
    folder = fresh_folder(kind, tmp_path / "kind")

    @settings(
        max_examples=cases_of(name),
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=kind.cases)
    def run(case: Any) -> None:
        nonlocal count
        outcome(kind, folder, case)
        count += 1

    run()
    assert count >= cases_of(name)


def test_the_cases_are_300() -> None:
    assert sum(map(cases_of, KINDS)) == CASES


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("--set")])
def test_the_file_that_is_spoilt_works_as_it_is(name: str, tmp_path: Path) -> None:
    """Otherwise nothing but its first mistake would ever be met."""
    folder = fresh_folder(KINDS[name], tmp_path / "kind")
    for raw in VALID[name]:
        assert outcome(KINDS[name], folder, raw) == "works"


VALUES = {"steps": 10, "name": "x", "list": [1, 2]}


def _raises_key_error(folder: Path, raw: bytes) -> None:
    json.loads(raw)["steps"]


def _two_lines(folder: Path, raw: bytes) -> None:
    class Careless(ConfigError):
        def __str__(self) -> str:
            return "one line\nand another"

    raise Careless("file", "is wrong", "mend it")


@pytest.mark.parametrize(
    ("read", "found"), [(_raises_key_error, "KeyError: 'steps'"), (_two_lines, "a message of several lines")]
)
def test_what_escapes_is_found_and_made_small(read: Callable[[Path, Any], object], found: str, tmp_path: Path) -> None:
    counts, failure = run_kind(Kind(files(VALUES).filter(_is_object), read), tmp_path / "kind", 200, 0)
    assert found in failure
    assert len(failure.splitlines()[0]) < 60
    assert counts.total() < 200


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def test_the_benchmark_counts_what_it_draws() -> None:
    command = [sys.executable, "benchmarks/fuzz.py", "--cases", "21", "--kinds", "mixture", "recipe"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    printed = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert printed["cases"] == printed["works"] + printed["refused"] == 21
    assert [sum(of_kind.values()) for of_kind in printed["kinds"].values()] == [11, 10]
    assert set(printed["refused_by"]) <= {"MixtureError", "ConfigError"}
    assert printed["escaped"] == {}
