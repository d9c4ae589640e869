"""What comes from outside is data: nothing of it is run, nothing leads out of its folder. docs/security.md says it.

What stands in the way of most of this is a library's; these tests hold it where we call the library.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from doge_ds.cli import main
from doge_ds.data.reading.recipes import Source
from doge_ds.data.tokenizer import load_tokenizer
from doge_ds.errors import ConfigError, DogeError, ModelError, StoreError, TokenizerError
from doge_ds.evaluation import models
from doge_ds.evaluation.fewshot import FewShotOptions, check_tasks
from doge_ds.json_files import write_json
from doge_ds.mixture import Mixture
from doge_ds.mixture_files import exported, read_any
from doge_ds.model_files import check_implementations
from tests.outside import evaluate, prepared, read, refused, small_model, start_from
from tests.stores import make_store

ROOT = Path(__file__).resolve().parents[1]
TEXT = "One line of text, and no more than that.\n"


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that bombs and programs make; it must not be there when a test is done."""
    file = tmp_path / "went_off"
    yield file
    assert not file.exists()


def program(mark: Path) -> str:
    return f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def test_bombs_and_programs_go_off_where_they_are_run(tmp_path: Path) -> None:
    """Otherwise none of the tests below could fail."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "a")))
    torch.save({"weight": Bomb(tmp_path / "b")}, tmp_path / "b.pt")
    torch.load(tmp_path / "b.pt", weights_only=False)
    (tmp_path / "c.py").write_text(program(tmp_path / "c"))
    subprocess.run([sys.executable, tmp_path / "c.py"], check=True)
    assert all((tmp_path / name).exists() for name in "abc")


# Pickles.


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt"])
@pytest.mark.parametrize("is_archive", [False, True])
def test_a_model_that_is_a_pickle_is_refused(model: Path, mark: Path, name: str, is_archive: bool) -> None:
    (model / "model.safetensors").unlink()
    if is_archive:
        torch.save({"transformer.wte.weight": Bomb(mark)}, model / name)
    else:
        (model / name).write_bytes(pickle.dumps(Bomb(mark)))
    for act in (evaluate, start_from):
        said = refused(ModelError, lambda act=act: act(model))
        assert f"has its weights as a pickle, {name}" in said
        assert "save_pretrained(...) writes safetensors" in said


def test_pickles_beside_safetensors_are_left_alone(model: Path, mark: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save({"x": Bomb(mark)}, model / name)
    assert evaluate(model)
    assert start_from(model)


def test_a_model_on_the_hub_that_is_a_pickle_is_refused(model: Path, mark: Path, tmp_path: Path) -> None:
    """From the hub's cache, which needs no network."""
    repository = tmp_path / "home/hub/models--org--evil"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    shutil.copy(model / "config.json", snapshot)
    torch.save({"transformer.wte.weight": Bomb(mark)}, snapshot / "pytorch_model.bin")
    make_store(tmp_path / "store", {"a": np.arange(1, 17) % 8}, {"a": np.arange(1, 17) % 8}, vocabulary_size=16)
    command = [sys.executable, "eval/run.py", "--model", "org/evil", "--data", str(tmp_path / "store")]
    command += ["--output", str(tmp_path / "results.json")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: --model org/evil: ")
    assert "save_pretrained(...) writes safetensors" in last


def test_pickles_among_text_are_passed_over(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("a.pkl", "b.pt", "c.bin", "d.npy", "e.pickle"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    assert "holds no documents, but 5 files of other types" in prepared(tmp_path, f"--input=x={folder}")
    assert "is of an unknown type (.pkl)" in prepared(tmp_path, f"--input=x={folder / 'a.pkl'}")


@pytest.mark.parametrize("listed", ["", "  data_files: train.pkl\n", "  data_files: train.tar\n"])
def test_a_dataset_of_pickles_is_not_opened(tmp_path: Path, mark: Path, listed: str) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name, content in (("a.text", TEXT.encode()), ("a.pkl", pickle.dumps(Bomb(mark))), ("../b.text", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n{listed}---\n")
    refused(StoreError, lambda: read(Source(dataset=str(folder), domain="x")))
    assert not (tmp_path / "b.text").exists()


# Programs that lie beside models, tokenizers and datasets.


@pytest.fixture
def yes_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where it is not told."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))


def with_program(folder: Path, mark: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    values["auto_map"] = {name: f"evil.{name}" for name in names} | {"AutoTokenizer": ["evil.Tokenizer", None]}
    write_json(folder / "config.json", values | changes)
    (folder / "evil.py").write_text(program(mark))


@pytest.mark.usefixtures("yes_to_everything")
def test_code_of_a_model_is_not_run(model: Path, mark: Path) -> None:
    with_program(model, mark)  # of a type that transformers knows: its own code is taken
    assert evaluate(model)
    assert start_from(model)
    with_program(model, mark, model_type="evil")
    for act in (evaluate, start_from):
        said = refused(ModelError, lambda act=act: act(model))
        assert "has code of its own, which is not run; take a model of a type that transformers has" in said
    with_program(model, mark, model_type="gpt2")
    assert "no such setting" in refused(ConfigError, lambda: start_from(model, trust_remote_code=True))


@pytest.mark.usefixtures("yes_to_everything")
def test_code_of_a_tokenizer_is_not_run(model: Path, mark: Path, tmp_path: Path) -> None:
    values = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    write_json(model / "tokenizer_config.json", values)
    (model / "vocab.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    with_program(model, mark, model_type="evil")
    refused(TokenizerError, lambda: load_tokenizer(model))
    refused(ModelError, lambda: models.load_tokenizer(str(model)))
    (tmp_path / "a.txt").write_text(TEXT)
    command = ["prepare", f"--input=x={tmp_path / 'a.txt'}", "--output", str(tmp_path / "store"), "--tokenizer"]
    assert main([*command, str(model)]) == 2


def test_code_of_a_dataset_is_not_run(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "dataset.py").write_text(program(mark))
    assert "scripts are no longer supported" in refused(
        StoreError, lambda: read(Source(dataset=str(folder), domain="x"))
    )


def test_code_of_a_tasks_dataset_is_not_run(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "data/org/evil"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text(program(mark))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/evil.yaml").write_text(
        "task: evil_task\ndataset_path: org/evil\ndataset_kwargs: {trust_remote_code: true}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: x\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    )
    options = FewShotOptions(include_path=tmp_path / "tasks", data_root=tmp_path / "data")
    assert "cannot be loaded" in refused(ConfigError, lambda: check_tasks(["evil_task"], options))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_code_of_the_hub_that_a_model_names_is_not_fetched(model: Path, key: str) -> None:
    """Where the package `kernels` is installed, transformers would run it."""
    values = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**values, key: "evil/kernel"})
    for act in (evaluate, start_from):
        assert "wants code from the hub, 'evil/kernel'" in refused(ModelError, lambda act=act: act(model))
    check_implementations("x", AutoConfig.for_model("gpt2", attn_implementation="sdpa"))


# What a text can do to what is written.


def test_yaml_is_data(tmp_path: Path, mark: Path) -> None:
    for value in (
        f"!!python/object/apply:pathlib.Path.touch [{mark}]",
        f"!!python/object/apply:os.system ['touch {mark}']",
    ):
        (tmp_path / "m.yaml").write_text(f"a: {value}\n")
        assert "could not determine a constructor" in refused(DogeError, lambda: read_any(str(tmp_path / "m.yaml")))


def test_a_few_lines_of_yaml_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each list has the one before eight times: 8^20 numbers, if anybody wrote them down."""
    lines = ["l0: &l0 [1]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 8)}]" for n in range(1, 21))]
    (tmp_path / "m.yaml").write_text("\n".join(lines))
    assert "of type list is no weight" in refused(DogeError, lambda: read_any(str(tmp_path / "m.yaml")))


def test_names_are_words_for_a_shell(tmp_path: Path) -> None:
    """`doge-ds mixture export --format megatron` prints what is pasted into one."""
    name = f"$(touch {tmp_path}/mark) `id` ; 'x' \"y\""
    text = exported(Mixture(domains={name: 1.0}), "megatron", "data")
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines() == ["1", f"data/{name}"]


def test_messages_cannot_command_a_terminal() -> None:
    said = str(DogeError("a\x1b[2Jb", "c\r\nd\u2028e\x07\ud800", "f" * 10**6))
    assert said.startswith("a\\x1b[2Jb: c d e\\x07\\ud800; ffff")
    assert len(said) < 2000
    assert said.isprintable()
