"""How stages are started, and what is told of them; tests/test_compare.py runs them."""

import signal
import sys
from pathlib import Path

import pytest

from doge_ds.compare import choose_slots
from doge_ds.errors import ConfigError, RunError
from doge_ds.experiments.runner import Outcome, Runner, Slots, failure, gpus_of_this_machine, write_inputs
from doge_ds.experiments.stages import ScheduleOf, Stage
from doge_ds.mixture_schedule import read_schedule_file
from tests.reporting.run_directories import make_proxy


def stage(folder: Path, schedule: ScheduleOf | None = None) -> Stage:
    return Stage(
        "base", "a", 0, "f" * 64, folder / "stages/base-a-s0-ffffffffff", (), config={"x": 1}, schedule=schedule
    )


def test_one_rank_on_a_cpu_needs_no_launcher(tmp_path: Path) -> None:
    it = stage(tmp_path)
    assert Slots(2, 1).command(it, 1) == [sys.executable, *it.words]


def test_several_ranks_have_a_launcher_with_a_port_of_their_own(tmp_path: Path) -> None:
    it = stage(tmp_path)
    first, second = Slots(2, 2).command(it, 0), Slots(2, 2).command(it, 1)
    assert first[-len(it.words) - 2 :] == ["--num_accelerators", "2", *it.words]
    assert Path(first[0]).name == "deepspeed"
    ports = [command[command.index("--master_port") + 1] for command in (first, second)]
    assert ports[0] != ports[1]


@pytest.mark.parametrize(("ranks", "devices"), [(1, ["0", "1", "4"]), (2, ["0,1", "4,5", "6,7"])])
def test_every_slot_has_gpus_of_its_own(tmp_path: Path, ranks: int, devices: list[str]) -> None:
    slots = Slots(3, ranks, gpus=(0, 1, 4, 5, 6, 7))
    for slot, named in enumerate(devices):
        command = slots.command(stage(tmp_path), slot)
        assert command[command.index("--include") + 1] == f"localhost:{named}"


def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert gpus_of_this_machine({}) == (0, 1)
    assert gpus_of_this_machine({"CUDA_VISIBLE_DEVICES": "3,5"}) == (3, 5)
    assert gpus_of_this_machine({"CUDA_VISIBLE_DEVICES": "3,5", "DS_ACCELERATOR": "cpu"}) == ()
    assert gpus_of_this_machine({"CUDA_VISIBLE_DEVICES": "3, 5"}) == (3, 5)
    for names in ("GPU-8f2c1d", "MIG-1,MIG-2", "3,GPU-8f2c1d"):  # 0 and 1 may be another user's
        with pytest.raises(ConfigError, match="names GPUs otherwise than by number"):
            gpus_of_this_machine({"CUDA_VISIBLE_DEVICES": names})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with pytest.raises(ConfigError, match="2 stages of 2 ranks need 4 GPUs, and there are 2"):
        choose_slots(2, 2)


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [Slots(*of).environment()["OMP_NUM_THREADS"] for of in ((1, 1), (2, 2), (16, 1))] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Slots(2, 2).environment()["OMP_NUM_THREADS"] == "5"


def test_exit_status(tmp_path: Path) -> None:
    one = [stage(tmp_path)]
    assert Outcome().status == 0
    assert Outcome(saved=one).status == 75
    assert Outcome(failed=one, saved=one).status == 1
    assert Outcome(failed=one, was_stopped=True).status == 75


def test_a_failure_shows_the_last_lines(tmp_path: Path) -> None:
    it = stage(tmp_path)
    it.log.parent.mkdir()
    it.log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"\xff\n")
    text = failure(it, 2)
    assert text.splitlines()[0].startswith("error: base of a, seed 0: ended with status 2; its last lines, all are in ")
    assert "  line 99" in text.splitlines()
    assert "  line 50" not in text.splitlines()
    assert "was ended by SIGKILL" in failure(it, -signal.SIGKILL)
    assert f"ended without {it.result}: move {it.result.parent} away" in failure(it, 0)


def test_a_stage_that_cannot_be_started_holds_up_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import pathlib; (d := pathlib.Path('{}')).mkdir(); (d / 'mixture.json').touch()"

    class Shell(Stage):
        @property
        def words(self) -> list[str]:
            return ["-c", program.format(self.directory)]

    blocked = Shell("proxy", "a", 0, "a" * 64, tmp_path / "stages/a", (), config={"x": 1})
    free = Shell("proxy", "b", 0, "b" * 64, tmp_path / "stages/b", ())
    (tmp_path / "stages/a.json").mkdir(parents=True)  # what it reads cannot be written, as on a full disk
    outcome = Runner([blocked, free], Slots(2, 1)).run()
    assert outcome.failed == [blocked]
    assert free.is_finished
    assert "error: proxy of a, seed 0: cannot be started: " in capsys.readouterr().err


def test_what_a_stage_runs_on(tmp_path: Path) -> None:
    assert [Slots(2, 2, tuple(range(gpus))).devices for gpus in (0, 8)] == ["cpu", "4 GPUs"]
    assert Slots(1, 1, (0, 1)).devices == "1 GPU"


def test_a_schedule_is_made_of_the_proxys_trajectory(tmp_path: Path) -> None:
    run = make_proxy(tmp_path / "proxy")
    it = stage(tmp_path, ScheduleOf(run, parts=2, base_steps=100))
    write_inputs(it)
    assert [part.from_step for part in read_schedule_file(it.schedule_file).schedule] == [0, 50]
    assert it.words[-4:] == ["--mixture", str(it.schedule_file), "--output", str(it.directory)]
    assert (it.directory.parent / "base-a-s0-ffffffffff.json").read_text() == '{\n  "x": 1\n}\n'
    with pytest.raises(RunError, match="too few for 9 stages"):
        write_inputs(stage(tmp_path, ScheduleOf(run, parts=9, base_steps=100)))
