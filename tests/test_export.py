"""`doge-ds export`: what it refuses. tests/distributed/test_resume.py exports real checkpoints."""

import json
from pathlib import Path

import pytest

from doge_ds.cli import main
from tests.distributed.small_runs import small_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("export") / "store")


@pytest.fixture
def run(store: Path, tmp_path: Path) -> Path:
    """A base run with checkpoints of two steps and one that was begun and never finished."""
    run = tmp_path / "run"
    fingerprint = json.loads((store / "manifest.json").read_text())["tokenizer"]["sha256"]
    facts = {
        "program": "train_base",
        "ranks": 2,
        "mixture": {"a": 1.0},
        "store": "0123",
        "tokenizer_sha256": fingerprint,
    }
    config = {
        "model": {"model_type": "gpt2"},
        "data": {"path": str(store), "sequence_length": 16},
        "training": {"steps": 10, "global_batch_size": 4, "learning_rate": 0.1},
        "deepspeed": {},
    }
    for step in (5, 10, 15):
        (run / f"checkpoints/step{step:08d}").mkdir(parents=True)
    (run / "checkpoints/latest").write_text("step00000010")
    (run / "run.json").write_text(json.dumps(facts))
    (run / "config.json").write_text(json.dumps(config))
    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_what_is_no_base_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "hf"
    assert f"{tmp_path / 'nowhere'}: is no run directory" in refusal(capsys, tmp_path / "nowhere", "--output", output)
    (run / "run.json").write_text('{"program": "train_proxy"}')
    assert f"{run}: is a run of train_proxy" in refusal(capsys, run, "--output", output)
    (run / "run.json").write_text('{"program": ')
    assert f"{run}/run.json: is damaged" in refusal(capsys, run, "--output", output)
    assert not output.exists()


def test_another_store_is_refused(run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = refusal(capsys, run, "--output", tmp_path / "hf")
    assert f"{store}: is not the store 0123 that {run} was trained on; give that one with --data" in printed


def test_a_step_without_a_whole_checkpoint_is_refused(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_ds.data.tokens.TokenStore.fingerprint", lambda self: "0123")
    for step in (7, 15):
        printed = refusal(capsys, run, "--output", tmp_path / "hf", "--step", step)
        assert f"has no checkpoint of step {step}; the steps there are: 5, 10" in printed
    (run / "checkpoints/latest").unlink()
    assert "has no checkpoint; the steps there are: none" in refusal(capsys, run, "--output", tmp_path / "hf")


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis").mkdir()
    assert "thesis: exists, and is not touched" in refusal(capsys, run, "--output", tmp_path / "thesis")
    assert "stand in a folder that is not there" in refusal(capsys, run, "--output", tmp_path / "nowhere/hf")
