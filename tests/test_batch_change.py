"""What a changed batch does to a run that is continued; tests/distributed/test_batch_change.py runs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from doge_ds.batch_change import RunBatches, another_start, continued_batches, steps_done
from doge_ds.command_line import RunArguments
from doge_ds.config import BaseConfig, ProxyConfig
from doge_ds.data.batches import BatchSizes, BatchStage
from doge_ds.errors import RunError
from doge_ds.training.run_directory import RunDirectory

KEYS = {"base": "global_batch_size", "proxy": "sequences_per_domain"}


def config(size: int, kind: str = "base") -> BaseConfig | ProxyConfig:
    training = {"steps": 40, KEYS[kind]: size, "learning_rate": 0.1}
    sections = {"model": {"model_type": "gpt2"}, "data": {"path": "store", "sequence_length": 8}, "deepspeed": {}}
    return (BaseConfig if kind == "base" else ProxyConfig).model_validate({**sections, "training": training})


def look(
    run: Path, size: int, done: int = 0, change: bool = False, kind: str = "base", **facts: Any
) -> tuple[RunBatches, RunDirectory]:
    """What a start finds, and its directory, where that is not refused."""
    options = RunArguments(Path("x.json"), [], run, "auto", change_batch=change)
    batches = continued_batches(options, config(size, kind), done)
    directory = RunDirectory(
        run,
        config(size, kind),
        {"ranks": 1, **facts, **batches.facts},
        "hf",
        "auto",
        changes_batch=batches.changed_at is not None,
    )
    return batches, directory


def stages_of(batches: RunBatches) -> list[tuple[int, int]]:
    return [tuple(stage) for stage in batches.sizes.stages]


@pytest.mark.parametrize("kind", ["base", "proxy"])
def test_a_change_is_made_once_and_only_when_told_to(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    for change in (False, True):  # the option is for later starts too, so that one command will do
        first, directory = look(run, 8, change=change, kind=kind)
        assert (first.sizes, first.facts, first.lines) == (BatchSizes.of(8), {}, [])
        directory.create()
    message = (
        rf"another run: config.training.{KEYS[kind]} is 8 there and 16 here; name another --output, or change the "
    )
    with pytest.raises(RunError, match=message + "batch from the latest checkpoint on with --change_batch$"):
        look(run, 16, kind=kind)

    changing, directory = look(run, 16, 20, change=True, kind=kind)
    assert (stages_of(changing), changing.changed_at) == ([(0, 8), (20, 16)], 20)
    assert changing.lines == [
        "the batch changes: sequences 8 from step 0 on, 16 from step 20 on",
        "this start changes the batch, from step 20 on",
    ]
    directory.create(20)
    record = [{"from_step": 0, "sequences": 8}, {"from_step": 20, "sequences": 16}]
    assert json.loads((run / "run.json").read_text())["batches"] == record
    for change in (False, True):
        again, directory = look(run, 16, 26, change=change, kind=kind)
        assert (stages_of(again), again.changed_at) == ([(0, 8), (20, 16)], None)
        directory.create(26)
        assert json.loads((run / "run.json").read_text())["batches"] == record
    with pytest.raises(RunError, match=message.replace("is 8 there and 16 here", "is 16 there and 8 here")):
        look(run, 8, kind=kind)
    third, _ = look(run, 8, 30, change=True, kind=kind)
    assert stages_of(third) == [(0, 8), (20, 16), (30, 8)]


@pytest.mark.parametrize("done", [0, 20])
@pytest.mark.parametrize("written", ["run.json", "config.json"])
def test_a_kill_between_two_files_of_the_record_changes_nothing_again(tmp_path: Path, done: int, written: str) -> None:
    run = tmp_path / "run"
    look(run, 8)[1].create()
    before = (run / "config.json").read_bytes()
    changing, directory = look(run, 16, done, change=True)
    directory.create(done)
    if written == "run.json":  # which is the first
        (run / "config.json").write_bytes(before)
    for change in (False, True):
        again, _ = look(run, 16, done, change=change)
        assert (again.sizes, again.changed_at) == (changing.sizes, None)
    with pytest.raises(RunError, match=r"global_batch_size is 16 there and 8 here; name .* with --change_batch"):
        look(run, 8, done)


def test_a_change_back_is_recorded_though_it_is_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    look(run, 8)[1].create()
    look(run, 16, 20, change=True)[1].create(20)
    config_of_16 = (run / "config.json").read_bytes()
    back, directory = look(run, 8, 20, change=True)
    assert stages_of(back) == [(0, 8)]
    directory.create(20)
    (run / "config.json").write_bytes(config_of_16)  # killed between the two
    again, _ = look(run, 8, 20)
    assert stages_of(again) == [(0, 8)]


def test_from_an_older_checkpoint_the_change_is_made_again_when_told_to(tmp_path: Path) -> None:
    run = tmp_path / "run"
    look(run, 8)[1].create()
    look(run, 16, 20, change=True)[1].create(20)
    same, _ = look(run, 16, 18)  # the loader then refuses the checkpoint
    assert stages_of(same) == [(0, 8), (20, 16)]
    earlier, directory = look(run, 16, 18, change=True)
    assert (stages_of(earlier), earlier.changed_at) == ([(0, 8), (18, 16)], 18)
    directory.create(18)
    assert stages_of(look(run, 16, 18)[0]) == [(0, 8), (18, 16)]
    assert stages_of(look(run, 16, 0, change=True)[0]) == [(0, 16)]


def test_a_finished_run_is_not_changed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    look(run, 8)[1].create()
    (run / "hf").mkdir()
    options = RunArguments(Path("x.json"), [], run, "auto", change_batch=True)
    assert steps_done(options, config(16), "hf") == 40
    with pytest.raises(RunError, match="has done all its 40 steps; name another --output for another batch"):
        look(run, 16, 40, change=True)
    with pytest.raises(RunError, match=r"is 8 there and 16 here; name another --output$"):
        look(run, 16)
    assert look(run, 8, 40, change=True)[1].is_finished


def test_other_differences_are_refused_with_the_option_and_without(tmp_path: Path) -> None:
    run = tmp_path / "run"
    look(run, 8, store="abc")[1].create()
    for change in (False, True):
        with pytest.raises(RunError, match=r"store is abc there and def here.*; name another --output$"):
            look(run, 16, 20, change=change, store="def")
    with pytest.raises(
        RunError, match=r"or change the mixture and the batch .* with --change_mixture and --change_batch"
    ):
        look(run, 16, mixture={"a": 1.0}, store="abc")
    look(run, 16, 20, change=True, store="abc")[1].create(20)
    with pytest.raises(RunError, match=r"store is abc there and def here; name another --output$"):
        look(run, 16, 26, store="def")


def test_the_mean_of_a_schedule_changes_with_the_batch(tmp_path: Path) -> None:
    run, schedule = (
        tmp_path / "run",
        [{"from_step": 0, "mixture": {"a": 0.2}}, {"from_step": 20, "mixture": {"a": 0.6}}],
    )
    look(run, 8, mixture={"a": 0.4}, schedule=schedule)[1].create()
    look(run, 16, 20, change=True, mixture={"a": 0.5}, schedule=schedule)[1].create(20)
    look(run, 16, 26, mixture={"a": 0.5}, schedule=schedule)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (7, "is damaged"),
        ([7], "is damaged"),
        ([{"from_step": 0}], "is damaged"),
        ([{"from_step": 0, "sequences": 8}, {"from_step": -3, "sequences": 16}], "holds another run: batches"),
        ([{"from_step": 5, "sequences": 16}], "holds another run: batches"),
    ],
)
@pytest.mark.parametrize("change", [False, True])
def test_a_damaged_record_is_refused(tmp_path: Path, batches: Any, message: str, change: bool) -> None:
    run = tmp_path / "run"
    look(run, 16)[1].create()
    (run / "run.json").write_text(json.dumps({"ranks": 1, "batches": batches}))
    with pytest.raises(RunError, match=message):
        look(run, 16, 20, change=change)


def test_without_a_change_nobody_looks_at_the_checkpoints(tmp_path: Path) -> None:
    options = RunArguments(Path("x.json"), [], tmp_path, "auto")
    assert steps_done(options, config(8), "hf") == 0
    assert RunBatches(BatchSizes((BatchStage(0, 8),))).facts == {}


def test_a_change_that_was_meant_for_another_checkpoint_is_not_made() -> None:
    assert another_start([None, None], 6) is None
    assert another_start([6, None], 6) is None
    error = another_start([None, 12], 6)
    assert "would change from step 12 on, and its checkpoint is of step 6; start it again by the same" in str(error)
