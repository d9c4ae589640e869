"""What users point our programs at, and what comes of it: for tests of what comes from outside."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.cli import main
from doge_ds.data.reading.hub import dataset_units
from doge_ds.data.reading.recipes import Source
from doge_ds.errors import DogeError
from doge_ds.evaluation import models
from doge_ds.training.model import model_config


def small_model(folder: Path) -> Path:
    """A Hugging Face folder, whole."""
    config = AutoConfig.for_model(
        "gpt2", n_layer=1, n_embd=8, n_head=2, n_positions=8, vocab_size=16, bos_token_id=0, eos_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def refused(kind: type[DogeError], act: Callable[[], object]) -> str:
    """The one line with which it is refused."""
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def evaluate(folder: Path) -> object:
    """What eval/run.py does with a --model."""
    models.load_config(str(folder), str(folder))
    return models.load_model(str(folder))


def start_from(folder: Path, **settings: object) -> object:
    """What the training programs do with model.pretrained."""
    return model_config({"pretrained": str(folder), **settings}, 16, 0, 8)


def prepared(tmp_path: Path, *arguments: str) -> str:
    """The one line that `doge-ds prepare` ends with."""
    words = ["prepare", *arguments, "--output", str(tmp_path / "store"), "--train_tokenizer", "300", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", io.StringIO())
        assert main(words) == 2
        said = sys.stderr.getvalue()
    return str(said.splitlines()[-1])


def read(source: Source) -> list[Any]:
    """All documents of a dataset."""
    return [document for unit in dataset_units(source) for document in unit.read()]
