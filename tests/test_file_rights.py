"""Whatever is written has the rights that the user's umask gives: others of a group can read it, or nobody can."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from doge_ds.cli import main
from doge_ds.config import BaseConfig, load_config
from doge_ds.json_files import write_json
from doge_ds.report import write_report
from doge_ds.training.run import RunDirectory
from tests.reporting.run_directories import make_proxy
from tests.stores import make_store


@pytest.fixture(params=[0o027, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield int(request.param)
    os.umask(before)


def assert_rights(place: Path, umask: int, least: int) -> None:
    """Everything below `place`, itself too where it is a file, has what new files and folders get."""
    found = [*place.rglob("*"), *([place] if place.is_file() else [])]
    for path in found:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert oct(path.stat().st_mode & 0o777) == oct(wanted), path
    assert len(found) >= least


def test_prepare_and_the_tokenizer_leave_the_users_rights(tmp_path: Path, umask: int) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        text = Path(__file__).read_text()[number * 50 :][:2000]
        (tmp_path / f"in/{number}.txt").write_text(f"{number * 7919} {text}")
    given = [f"--input=x={tmp_path / 'in'}"]
    train = ["--output", str(tmp_path / "tokenizer"), "--vocabulary", "400", "--kind", "byte_level_bpe"]
    assert main(["tokenizer", *given, *train]) == 0
    store = ["--output", str(tmp_path / "store"), "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "1"]
    (tmp_path / "tokenizer").chmod(0o700)
    assert main(["prepare", *given, *store]) == 0
    (tmp_path / "tokenizer").chmod(0o777 & ~umask)
    assert_rights(tmp_path, umask, 50)


def test_mixtures_and_reports_leave_the_users_rights(tmp_path: Path, umask: int) -> None:
    make_proxy(tmp_path / "proxy")
    write_report([tmp_path / "proxy"], tmp_path / "report.html")
    mixture = ["mixture", "show", str(tmp_path / "proxy")]
    assert main([*mixture, "--plot", str(tmp_path / "m.png")]) == 0
    assert main(["mixture", "set", str(tmp_path / "proxy"), "python=0.5", "-o", str(tmp_path / "m.json")]) == 0
    assert main(["mixture", "export", str(tmp_path / "proxy"), "--format", "yaml", "-o", str(tmp_path / "m.yaml")]) == 0
    assert_rights(tmp_path, umask, 9)


def test_a_run_directory_has_the_users_rights(tmp_path: Path, umask: int) -> None:
    values = {
        "model": {"model_type": "gpt2"},
        "data": {"path": "store", "sequence_length": 8},
        "training": {"steps": 10, "global_batch_size": 4, "learning_rate": 0.1},
        "deepspeed": {},
    }
    write_json(tmp_path / "c.json", values)
    RunDirectory(tmp_path / "runs/a", load_config(BaseConfig, tmp_path / "c.json"), {}, "hf", "auto").create()
    assert_rights(tmp_path / "runs", umask, 4)


def test_results_of_an_evaluation_have_the_users_rights(tmp_path: Path, umask: int) -> None:
    from tests.evaluation.test_run import eval_run, save_model

    ids = np.arange(1, 400) % 60
    make_store(tmp_path / "store", {"a": ids}, {"a": ids})
    for name in ("one", "two"):
        save_model(tmp_path / name)
    command = ["--data", str(tmp_path / "store"), "--device", "cpu", "--output"]
    assert eval_run.main(["--model", str(tmp_path / "one"), *command, str(tmp_path / "r.json")]) == 0
    both = [str(tmp_path / name) for name in ("one", "two")]
    assert eval_run.main(["--model", *both, *command, str(tmp_path / "out")]) == 0
    assert_rights(tmp_path / "out", umask, 5)
    assert_rights(tmp_path / "r.json", umask, 1)
