"""metrics.jsonl: every logged step once, whatever kills and full disks do."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.training.metrics_file import MetricsFile
from tests.training.conftest import fill


def line(step: int) -> dict:
    return {"step": step, "loss": step / 3, "seconds": 2.0 * step}


def steps_in(file: Path) -> list[int]:
    return [json.loads(text)["step"] for text in file.read_text().splitlines()]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), first_step=st.integers(0, 12))
def test_wherever_a_kill_cut_it_a_continued_run_has_each_step_once(
    cut: int, first_step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    whole = MetricsFile(file, 0)
    for step in range(1, 11):
        whole.append(line(step))
    text = file.read_text()
    written = text[:cut]
    file.write_text(written)
    on_disk = written.count("\n")  # a checkpoint is never newer than the lines before it
    first_step = min(first_step, on_disk)
    again = MetricsFile(file, first_step)
    assert again.seconds == 2.0 * first_step
    for step in range(first_step + 1, 11):
        again.append(line(step))
    assert file.read_text() == text


def test_lines_that_a_full_disk_refused_are_kept_and_written_later(tmp_path: Path, small_disk: Path) -> None:
    file = small_disk / "metrics.jsonl"
    metrics = MetricsFile(file, 0)
    assert metrics.append(line(1)) is None
    filler = fill(small_disk)
    for step in range(2, 300):  # more than what is left of the file's last block
        problem = metrics.append({**line(step), "text": "x" * 100})
    assert problem == "No space left on device"
    assert metrics.sync() == f"{file}: No space left on device"
    assert all(text.endswith("}") for text in file.read_text().splitlines())
    filler.unlink()
    assert metrics.append(line(300)) is None
    assert metrics.sync() is None
    assert steps_in(file) == list(range(1, 301))
