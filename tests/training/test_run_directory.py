"""Run directories: which may be continued, and what is recorded of a start."""

import errno
import json
import os
from pathlib import Path

import pytest

from doge_ds.config import ProxyConfig
from doge_ds.errors import RunError
from doge_ds.training.run_directory import RunDirectory


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
        ({"sequences_per_domain": 8}, "config.training.sequences_per_domain is 4 there and 8 here"),
        ({"facts": {"ranks": 2, "store": "abc", "program": "other"}}, "program is not set there and other here"),
        ({"facts": {"ranks": 2, "store": "def"}}, "store is abc there and def here"),
        (
            {"facts": {"ranks": 2, "store": "abc", "tokenizer_sha256": "f0"}},
            "tokenizer_sha256 is not set there and f0 here",
        ),
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


@pytest.mark.parametrize("name", ["a [1]", "a*", "what?"])
def test_a_path_that_deepspeed_would_take_for_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="DeepSpeed would not find its checkpoints there"):
        look(tmp_path / name / "run")
    assert not any(tmp_path.iterdir())


def test_a_run_killed_while_its_directory_was_made_starts_again(tmp_path: Path) -> None:
    look(tmp_path / "run").create()
    (tmp_path / "run/starts.jsonl").unlink()
    (tmp_path / "run/config.json").rename(tmp_path / "run/config.json.tmp")
    look(tmp_path / "run").create()
    assert (tmp_path / "run/config.json").is_file()
    (tmp_path / "run/config.json").unlink()
    (tmp_path / "run/metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="is no run of ours"):
        look(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"peak_tflops": 100.0},
        {"gradient_checkpointing": True},
        {"micro_batch_size": 2},
        {"facts": {"ranks": 4, "store": "abc"}},
    ],
    ids=lambda change: next(iter(change)),
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


def test_another_model_is_another_run(tmp_path: Path) -> None:
    look(tmp_path / "run").create()
    wider = config().model_copy(update={"model": {"model_type": "gpt2", "n_embd": 32}})
    with pytest.raises(RunError, match=r"config\.model\.n_embd is not set there and 32 here; name another --output"):
        RunDirectory(tmp_path / "run", wider, {"ranks": 2, "store": "abc"}, "mixture.json", "auto")


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
    with pytest.raises(RunError, match=r"store is not set there and b here.*; name another --output$"):
        look(tmp_path / "run", facts={**new, "store": "b"})
    RunDirectory(tmp_path / "run", config(), new, "mixture.json", "auto", changes_mixture=True).create()
    assert json.loads((tmp_path / "run/run.json").read_text()) == new
    with pytest.raises(RunError, match="store is not set there and b here"):
        RunDirectory(tmp_path / "run", config(), {**old, "store": "b"}, "mixture.json", "auto", changes_mixture=True)


def test_every_start_is_recorded_with_its_command_and_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(tmp_path / "run").create()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr("sys.argv", ["train_proxy.py", "--config", "x.json"])
    look(tmp_path / "run").create(first_step=6)
    first, second = map(json.loads, (tmp_path / "run/starts.jsonl").read_text().splitlines())
    assert (first["job"], first["restarts_of_job"], first["after_step"], first["ranks"]) == (None, 0, 0, 2)
    assert (second["job"], second["restarts_of_job"], second["after_step"]) == ("77", 1, 6)
    assert second["command"] == ["train_proxy.py", "--config", "x.json"]
    assert set(second["versions"]) == {"doge_ds", "deepspeed", "torch", "transformers"}
    assert not (tmp_path / "run/submitted").exists()


def test_a_jobs_scripts_and_configuration_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    for name in ("proxy", "launch", "site", "eval"):
        (tmp_path / f"slurm/{name}.sh").write_text(f"# {name}")
    (tmp_path / "x.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOGE_DS_SCRIPT", "slurm/proxy.sh")
    look(tmp_path / "run").create(config=Path("x.json"))
    (tmp_path / "slurm/site.sh").write_text("# edited later")
    kept = {file.name: file.read_text() for file in (tmp_path / "run/submitted").iterdir()}
    assert kept == {"proxy.sh": "# proxy", "launch.sh": "# launch", "site.sh": "# site", "x.json": "{}"}


def test_a_file_system_without_locks_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)  # as NFS without its lock daemon; filelock is the real one
    assert look(tmp_path / "run").lock() is None
    printed = capsys.readouterr().err
    assert printed.startswith(f"warning: {tmp_path / 'run'}: its file system has no locks (")
    assert printed.endswith("); start it only once\n")
    assert printed.count("\n") == 1


def test_two_processes_do_not_write_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doge_ds.training.run_directory.SECONDS_FOR_THE_LOCK", 0.3)
    first = look(tmp_path / "run")
    assert first.lock() is None
    error = look(tmp_path / "run").lock()
    assert "run: is being written by another process; wait for its end, or end it; `fuser " in str(error)
    first._lock.release()
    assert look(tmp_path / "run").lock() is None
