"""Run directories: which may be continued, and what metrics.jsonl keeps."""

import json
from pathlib import Path

import pytest

from doge_ds.config import ProxyConfig
from doge_ds.errors import RunError
from doge_ds.training.monitor import monitor_settings
from doge_ds.training.run import Run, RunDirectory
from doge_ds.training.throughput import Throughput


def config(**training: object) -> ProxyConfig:
    return ProxyConfig.model_validate(
        {
            "model": {"model_type": "gpt2"},
            "data": {"path": "store", "sequence_length": 8},
            "training": {"steps": 10, "sequences_per_domain": 4, "learning_rate": 0.1, "log_every": 3, **training},
            "deepspeed": {},
        }
    )


def look(path: Path, resume: str = "auto", facts: dict | None = None, **training: object) -> RunDirectory:
    return RunDirectory(path, config(**training), facts or {"ranks": 2, "store": "abc"}, "mixture.json", resume)


def start(directory: RunDirectory, first_step: int, is_speaker: bool = True, **training: object) -> Run:
    monitors = monitor_settings({}, directory.path)
    return Run(directory, first_step, config(**training).training, monitors, Throughput(), is_speaker)


def test_an_unfinished_run_may_go_on_with_keys_that_touch_nothing_changed(tmp_path: Path) -> None:
    look(tmp_path / "run").create()
    again = look(tmp_path / "run", log_every=5, checkpoint_every=7, keep_checkpoints=1, eval_every=2, eval_windows=9)
    assert not again.is_finished
    again.create()
    assert json.loads((tmp_path / "run/config.json").read_text())["training"]["log_every"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 20}, "config.training.steps is 10 there and 20 here"),
        ({"micro_batch_size": 2}, "config.training.micro_batch_size is None there and 2 here"),
        ({"facts": {"ranks": 4, "store": "abc"}}, "ranks is 2 there and 4 here"),
        ({"facts": {"ranks": 2, "store": "def"}}, "store is abc there and def here"),
        ({"resume": "never"}, "holds a run already"),
    ],
)
def test_another_run_is_refused_and_left_alone(tmp_path: Path, change: dict, message: str) -> None:
    look(tmp_path / "run").create()
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(RunError, match=message):
        look(tmp_path / "run", **change)
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_a_finished_run_may_be_asked_for_with_other_ranks(tmp_path: Path) -> None:
    look(tmp_path / "run").create()
    (tmp_path / "run/mixture.json").write_text("{}")
    assert look(tmp_path / "run", facts={"ranks": 1, "store": "abc"}).is_finished


def test_folders_and_files_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/draft.txt").write_text("years of work")
    with pytest.raises(RunError, match="is no run of ours"):
        look(tmp_path / "thesis")
    with pytest.raises(RunError, match="is a file"):
        look(tmp_path / "thesis/draft.txt")
    (tmp_path / "empty").mkdir()
    look(tmp_path / "empty").create()
    assert (tmp_path / "empty/config.json").is_file()


def test_a_run_killed_while_its_directory_was_made_starts_again(tmp_path: Path) -> None:
    look(tmp_path / "run").create()
    (tmp_path / "run/config.json").rename(tmp_path / "run/config.json.tmp")
    look(tmp_path / "run").create()
    assert (tmp_path / "run/config.json").is_file()
    (tmp_path / "run/config.json").unlink()
    (tmp_path / "run/metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="is no run of ours"):
        look(tmp_path / "run")


@pytest.mark.usefixtures("process_group")
def test_metrics_of_steps_beyond_the_checkpoint_are_cut_and_half_a_line_too(tmp_path: Path) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    run = start(directory, 0)
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
    resumed = start(directory, 7)
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
    tmp_path: Path, eval_every: int | None, evaluated: list[int], logged: list[int]
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    run = start(directory, 0, eval_every=eval_every)
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
    run = start(directory, 0, is_speaker=False)
    for step in run.steps():
        run.log(step, tokens=5, tokens_so_far=5 * (step + 1), values={"loss": 1.0}, shown="")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.usefixtures("process_group")
def test_in_a_log_file_the_progress_line_is_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = look(tmp_path / "run")
    directory.create()
    throughput = Throughput(devices=2, flops_per_token=1e9, peak_tflops=1.0)
    run = Run(directory, 0, config().training, monitor_settings({}, directory.path), throughput, is_speaker=True)
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
    again = start(directory, 8)
    for step in again.steps():
        again.log(step, tokens=5, tokens_so_far=5 * (step + 1), values={"loss": 2.5}, shown="")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "continues after step 8 of 10"
    assert [line.split("| ")[1][:5].strip() for line in lines[1:]] == ["9/10", "10/10"]


@pytest.mark.parametrize(
    "change", [{"peak_tflops": 100.0}, {"gradient_checkpointing": True}], ids=lambda change: next(iter(change))
)
def test_what_changes_no_number_may_change(tmp_path: Path, change: dict) -> None:
    look(tmp_path / "run").create()
    assert not look(tmp_path / "run", **change).is_finished


def test_monitors_may_change_and_the_rest_of_the_deepspeed_configuration_may_not(tmp_path: Path) -> None:
    def look_with(deepspeed: dict) -> RunDirectory:
        changed = config().model_copy(update={"deepspeed": deepspeed})
        return RunDirectory(tmp_path / "run", changed, {"ranks": 2}, "mixture.json", "auto")

    look_with({"bf16": {"enabled": True}}).create()
    look_with({"bf16": {"enabled": True}, "csv_monitor": {"enabled": True}, "tensorboard": {"enabled": False}})
    with pytest.raises(RunError, match=r"config\.deepspeed\.bf16.enabled is True there and False here"):
        look_with({"bf16": {"enabled": False}})


def test_a_mixture_changes_only_where_it_is_told_to(tmp_path: Path) -> None:
    old = {"ranks": 2, "mixture": {"a": 0.5}, "schedule": [{"from_step": 0, "mixture": {"a": 0.5}}]}
    new = {"ranks": 2, "mixture": {"a": 0.75}, "schedule": [{"from_step": 0, "mixture": {"a": 0.75}}]}
    look(tmp_path / "run", facts=old).create()
    message = (
        "mixture.a is 0.5 there and 0.75 here, schedule.0.mixture.a is 0.5 there and 0.75 here; name another --output, "
        "or change the mixture from the latest checkpoint on with --change_mixture"
    )
    with pytest.raises(RunError, match=message):
        look(tmp_path / "run", facts=new)
    with pytest.raises(RunError, match=r"ranks is 2 there and 4 here.*; name another --output$"):
        look(tmp_path / "run", facts={**new, "ranks": 4})
    RunDirectory(tmp_path / "run", config(), new, "mixture.json", "auto", changes_mixture=True).create()
    assert json.loads((tmp_path / "run/run.json").read_text()) == new
    with pytest.raises(RunError, match="ranks is 2 there and 4 here"):
        RunDirectory(tmp_path / "run", config(), {**old, "ranks": 4}, "mixture.json", "auto", changes_mixture=True)
