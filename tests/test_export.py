"""`doge-ds export`: what it refuses. tests/distributed/test_resume.py exports real checkpoints."""

import json
import shutil
from pathlib import Path

import pytest

from doge_ds.cli import main
from doge_ds.data.tokens import TokenStore
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
        if step < 15:
            (run / f"checkpoints/step{step:08d}/whole.json").write_text('{"ranks": 2, "files": {}}')
    (run / "checkpoints/latest").write_text("step00000010")
    (run / "run.json").write_text(json.dumps(facts))
    (run / "config.json").write_text(json.dumps(config))
    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "hf"
    assert f"{tmp_path / 'nowhere'}: is no run directory" in refusal(capsys, tmp_path / "nowhere", "--output", output)
    stray = tmp_path / "nowhere/checkpoints/step00000005"
    assert f"{tmp_path / 'nowhere'}: is no run directory" in refusal(capsys, stray, "-o", output)
    assert f"{run}/checkpoints: is no run directory" in refusal(capsys, run / "checkpoints", "-o", output)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "program": "train_proxy"}))  # which config.json is not of
    assert "config.json: training.global_batch_size: unknown key" in refusal(capsys, run, "-o", output)
    assert not output.exists()


def test_a_checkpoint_may_be_named_instead_of_its_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_ds.data.tokens.TokenStore.fingerprint", lambda self: "0123")
    checkpoints, output = run / "checkpoints", tmp_path / "hf"
    assert "step00000005: cannot be read (" in refusal(capsys, checkpoints / "step00000005", "-o", output)
    assert "no checkpoint of step 15; the steps" in refusal(capsys, checkpoints / "step00000015", "-o", output)
    printed = refusal(capsys, checkpoints / "step00000005", "-o", output, "--step", 10)
    assert f"--step 10: is not the step of {checkpoints / 'step00000005'}" in printed
    monkeypatch.chdir(checkpoints)
    assert "step00000005: cannot be read (" in refusal(capsys, "step00000005/", "-o", output, "--step", 5)


@pytest.mark.parametrize("size", ["0GB", "-1GB", "2", "GB", "2 GB", "1.5GB", "2GiB"])
def test_a_size_of_files_that_is_none_is_refused(
    run: Path, tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = refusal(capsys, run, "-o", tmp_path / "hf", f"--max_shard_size={size}")
    assert f"--max_shard_size {size}: is no size; write it like 500MB or 2GB" in printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"program": ', "run.json, line 1, column 13: is no JSON"),
        ("[1]", "run.json: holds no JSON object"),
        ('{"program": "train_base"}', "run.json: ranks: is damaged (Field required)"),
        ('{"program": "x", "ranks": 1}', "run.json: program: is damaged"),
        (
            '{"program": "train_base", "ranks": 1, "store": "0", "tokenizer_sha256": "0"}',
            "run.json: mixture: is missing",
        ),
        ('{"program": "train_base", "ranks": 1, "store": 7, "tokenizer_sha256": "0"}', "run.json: store: is damaged"),
    ],
)
def test_damaged_facts_are_one_line(
    run: Path, tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_text(text)
    assert f"{run}/{words}" in refusal(capsys, run, "--output", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("mixture", [{"nowhere": 1.0}, {"a": 0.5}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_a_mixture_that_is_none_of_the_store_is_one_line(
    run: Path, store: Path, tmp_path: Path, mixture: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "store": TokenStore(store).fingerprint(), "mixture": mixture}))
    refusal(capsys, run, "--output", tmp_path / "hf")


def test_a_checkpoint_without_its_files_is_one_line(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "store": TokenStore(store).fingerprint()}))
    printed = refusal(capsys, run, "--output", tmp_path / "hf", "--step", 5)
    assert f"{run}/checkpoints/step00000005: cannot be read (can't find *_model_states.pt" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


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
    for name in ("step00000001.bak", "step1", "stepping"):
        (run / "checkpoints" / name).mkdir()
    assert "the steps there are: 5, 10\n" in refusal(capsys, run, "--output", tmp_path / "hf", "--step", 1)
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint; the steps there are: none" in refusal(capsys, run, "--output", tmp_path / "hf")


def test_a_checkpoint_that_is_damaged_or_not_ours_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_ds.data.tokens.TokenStore.fingerprint", lambda self: "0123")
    folder = run / "checkpoints/step00000010"
    (folder / "x.pt").write_bytes(b"no archive")
    (folder / "whole.json").write_text('{"ranks": 2, "files": {"x.pt": 10}}')
    printed = refusal(capsys, run, "--output", tmp_path / "hf")
    assert (
        f"{folder}: is not as it was written: x.pt cannot be read (File is not a zip file); choose another" in printed
    )
    (folder / "x.pt").chmod(0o666)
    assert "x.pt: may be written by everybody" in refusal(capsys, run, "--output", tmp_path / "hf")


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis").mkdir()
    assert "thesis: exists, and is not touched" in refusal(capsys, run, "--output", tmp_path / "thesis")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert "link: exists, and is not touched" in refusal(capsys, run, "--output", tmp_path / "link")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("nowhere/hf", "cannot be written (No such file or directory)"),
        ("file/hf", "cannot be written (Not a directory)"),
        ("/proc/hf", "cannot be written ("),
    ],
)
def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_read(
    run: Path, tmp_path: Path, output: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (run / "run.json").write_text("damaged too")
    assert f"{tmp_path / output}: {words}" in refusal(capsys, run, "--output", tmp_path / output)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([{"from_step": 3, "sequences": 4}], "run.json: batches: is damaged"),
        ([{"from_step": 0, "sequences": 4}, {"from_step": 0, "sequences": 8}], "run.json: batches: is damaged"),
        ([{"from_step": 0, "sequences": 0}], "run.json: batches.0.sequences: is damaged"),
    ],
)
def test_a_damaged_record_of_batches_is_one_line(
    run: Path, tmp_path: Path, batches: list, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "batches": batches}))
    assert f"{run}/{words}" in refusal(capsys, run, "--output", tmp_path / "hf")
