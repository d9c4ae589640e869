"""A run under way: what is logged, shown and saved when, and what stops it."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from doge_ds.errors import DivergedError, SaveError
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.health import Health
from doge_ds.training.launch import Ranks
from doge_ds.training.monitor import monitor_settings
from doge_ds.training.run import Run
from doge_ds.training.run_directory import RunDirectory
from doge_ds.training.throughput import Throughput
from doge_ds.training.watchdog import Watchdog
from tests.training.test_run_directory import config, look


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    with Watchdog(Ranks(rank=0, world_size=1, local_rank=0), timeout=600) as watchdog:
        yield watchdog


def start(directory: RunDirectory, first_step: int, watchdog: Watchdog, **training: object) -> Run:
    monitors = monitor_settings({}, directory.path)
    return Run(directory, first_step, config(**training).training, monitors, Throughput(), watchdog)


@pytest.mark.usefixtures("process_group")
def test_metrics_of_steps_beyond_the_checkpoint_are_cut_and_half_a_line_too(tmp_path: Path, watchdog: Watchdog) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    run = start(directory, 0, watchdog)
    for step in run.steps():
        run.log(
            step,
            tokens=5,
            tokens_so_far=5 * (step + 1),
            values={"loss": float(step), "score/a": float("nan")},
            shown="",
        )
    file = tmp_path / "run/metrics.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [3, 6, 9, 10]
    with file.open("a") as stream:
        stream.write('{"step": 12, "lo')
    resumed = start(directory, 7, watchdog)
    assert list(resumed.steps()) == [7, 8, 9]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert [line["tokens"] for line in lines] == [15, 30]
    assert lines[0]["score/a"] is None


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("eval_every", "evaluated", "logged"),
    [(4, [4, 8, 10], [3, 4, 6, 8, 9, 10]), (20, [10], [3, 6, 9, 10]), (None, [], [3, 6, 9, 10])],
)
def test_a_step_that_is_evaluated_is_logged(
    tmp_path: Path, watchdog: Watchdog, eval_every: int | None, evaluated: list[int], logged: list[int]
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    run = start(directory, 0, watchdog, eval_every=eval_every)
    for step in run.steps():
        values = {"loss": 1.0}
        if run.is_logged(step):
            values |= run.evaluate(step, lambda step=step: {"held_out_log_perplexity": float(step)})
        run.log(step, tokens=5, tokens_so_far=5 * (step + 1), values=values, shown="")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == logged
    found = {line["step"]: line["held_out_log_perplexity"] for line in lines if "held_out_log_perplexity" in line}
    assert found == {step: step - 1 for step in evaluated}


@pytest.mark.usefixtures("process_group")
def test_only_rank_zero_writes(tmp_path: Path) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    with Watchdog(Ranks(rank=1, world_size=1, local_rank=0), timeout=600) as second:
        run = start(directory, 0, second)
        for step in run.steps():
            run.log(step, tokens=5, tokens_so_far=5 * (step + 1), values={"loss": 1.0}, shown="")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.usefixtures("process_group")
def test_in_a_log_file_the_progress_line_is_a_line_of_its_own(
    tmp_path: Path, watchdog: Watchdog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    throughput = Throughput(devices=2, flops_per_token=1e9, peak_tflops=1.0)
    run = Run(directory, 0, config().training, monitor_settings({}, directory.path), throughput, watchdog)
    for step in run.steps():
        run.log(step, tokens=5, tokens_so_far=5 * (step + 1), values={"loss": 2.5}, shown="a 0.25")
    printed = capsys.readouterr().err
    assert "\r" not in printed
    (line,) = printed.splitlines()  # the last step; before it too little time passes
    assert "10/10 [" in line
    assert "loss 2.500, " in line
    assert line.endswith(", a 0.25]")
    for unit in (" tokens/s, ", " a device, ", " TFLOP/s, MFU "):
        assert unit in line
    monkeypatch.setattr("doge_ds.training.run.SECONDS_BETWEEN_LINES", 0.0)
    again = start(directory, 8, watchdog)
    for step in again.steps():
        again.log(step, tokens=5, tokens_so_far=5 * (step + 1), values={"loss": 2.5}, shown="")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "continues after step 8 of 10"
    assert [line.split("| ")[1][:5].strip() for line in lines[1:]] == ["9/10", "10/10"]


class Saves:
    """Notes after which steps a checkpoint was written; fails where it is told to."""

    def __init__(self, fails_at: tuple[int, ...] = ()) -> None:
        self.steps: list[int] = []
        self.step = 0
        self._fails_at = fails_at

    def __call__(self, problem: str | None) -> None:
        assert problem is None
        if self.step in self._fails_at:
            raise SaveError("checkpoints", "the checkpoint could not be written (No space left on device)", "make room")
        self.steps.append(self.step)


def train(run: Run, tmp_path: Path, saves: Saves, bad: tuple[int, ...] = (), stop_at: int | None = None) -> int:
    """Run to the end of the steps or to where it stops; how many steps are done."""
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", run._training)
    health = Health(stop_after=3, has_loss_scale=False)
    for step in run.steps():
        run.warn(health.observe(step, float("nan") if step + 1 in bad else 1.0, True, lambda: "8 to 15"))
        run.log(step, tokens=5, tokens_so_far=5 * (step + 1), values={"loss": 1.0}, shown="")
        saves.step = step + 1
        if step + 1 == stop_at:
            signal.raise_signal(signal.SIGUSR1)
        if run.ends_after(step, run.stop_requested, health, checkpoints, saves):
            return step + 1
    return run._training.steps


@pytest.mark.usefixtures("process_group")
def test_checkpoints_are_due_every_few_steps_after_the_last_and_where_it_stops(
    tmp_path: Path, watchdog: Watchdog, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    saves = Saves()
    assert train(start(directory, 0, watchdog, checkpoint_every=4), tmp_path, saves) == 10
    assert saves.steps == [4, 8, 10]
    saves = Saves()
    assert train(start(directory, 0, watchdog, checkpoint_every=4), tmp_path, saves, stop_at=6) == 6
    assert saves.steps == [4, 6]
    printed = capsys.readouterr().err
    assert "stopped and saved after step 6 of 10 (SIGUSR1); the same command continues" in printed
    # Asked to stop in the very last step, it is finished and not stopped.
    assert train(start(directory, 0, watchdog, checkpoint_every=4), tmp_path, Saves(), stop_at=10) == 10


@pytest.mark.usefixtures("process_group")
def test_a_time_limit_saves_before_it_is_over(
    tmp_path: Path, watchdog: Watchdog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_ds.training.run.TimeLimit.is_near", lambda limit: limit._longest_step > 0)
    directory = look(tmp_path / "run")
    directory.create()
    saves = Saves()
    assert train(start(directory, 0, watchdog), tmp_path, saves) == 2
    assert saves.steps == [2]
    assert "stopped and saved after step 2 of 10 (time limit); the same command continues" in capsys.readouterr().err


@pytest.mark.usefixtures("process_group")
def test_a_save_that_fails_is_told_and_training_goes_on_or_stops(
    tmp_path: Path, watchdog: Watchdog, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    saves = Saves(fails_at=(4,))
    assert train(start(directory, 0, watchdog, checkpoint_every=2), tmp_path, saves) == 10
    assert saves.steps == [2, 6, 8, 10]
    assert "warning: checkpoints: the checkpoint could not be written (No space left on device)" in (
        capsys.readouterr().err
    )
    with pytest.raises(SaveError, match="No space left"):
        train(start(directory, 0, watchdog, checkpoint_every=4, on_failed_save="stop"), tmp_path, Saves(fails_at=(4,)))
    with pytest.raises(SaveError, match="No space left"):  # nothing comes after the last one
        train(start(directory, 0, watchdog), tmp_path, Saves(fails_at=(10,)))


@pytest.mark.usefixtures("process_group")
def test_bad_steps_are_warned_of_and_not_saved_after_and_too_many_end_the_run(
    tmp_path: Path, watchdog: Watchdog, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    saves = Saves()
    assert train(start(directory, 0, watchdog, checkpoint_every=2), tmp_path, saves, bad=(3, 4, 7)) == 10
    assert saves.steps == [2, 6, 8, 10]
    lines = {line["step"]: line for line in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())}
    assert list(lines) == [3, 4, 6, 7, 9, 10]  # every third, the last, and those with a warning
    assert [step for step, line in lines.items() if "warnings" in line] == [3, 4, 7]
    assert "the loss of step 4 is NaN or infinite, so the step was left out; its samples: 8 to 15" in (
        capsys.readouterr().err
    )
    message = (
        "all steps from 5 to 7: had a loss or gradient that is NaN or infinite; samples of the last: 8 to 15; "
        "there is no checkpoint before it; look for damaged text there"
    )
    with pytest.raises(DivergedError, match=message):
        train(start(directory, 0, watchdog), tmp_path, Saves(), bad=(5, 6, 7))
