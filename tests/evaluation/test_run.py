"""eval/run.py as a command: results, table, and the one line for each mistake."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.stores import make_store

ROOT = Path(__file__).resolve().parents[2]
specification = importlib.util.spec_from_file_location("eval_run", ROOT / "eval/run.py")
assert specification is not None
assert specification.loader is not None
eval_run = importlib.util.module_from_spec(specification)
specification.loader.exec_module(eval_run)


def save_model(folder: Path, vocabulary: int = 64, **facts: object) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0
    )
    for key, value in facts.items():
        setattr(config, key, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three domains, one without held-out text, and a model trained "on it"."""
    place = tmp_path_factory.mktemp("evaluation")
    generator = np.random.default_rng(0)
    train = {name: generator.integers(0, 64, 100) for name in ("a", "b", "c")}
    store = make_store(place / "store", train, {"a": train["a"][:50], "b": train["b"][:33]})
    save_model(place / "model", doge_ds_sequence_length=10, doge_ds_tokenizer_sha256=store.manifest.tokenizer.sha256)
    return place


def test_results_hold_every_domain_with_held_out_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(place / "model"), "--data", str(place / "store"), "--output", str(place / "r.json")]
    assert eval_run.main(command) == 0
    results = json.loads((place / "r.json").read_text())
    assert results["version"] == 1
    assert results["sequence_length"] == 10
    assert {name: domain["tokens"] for name, domain in results["perplexity"]["domains"].items()} == {"a": 50, "b": 33}
    assert results["perplexity"]["domains"]["b"]["bytes"] == 99
    assert 30 < results["perplexity"]["geometric_perplexity"] <= results["perplexity"]["average_perplexity"] < 130
    printed = capsys.readouterr()
    assert "c has no held-out tokens and is left out" in printed.err
    assert f"{results['perplexity']['domains']['a']['log_perplexity']:.4f}" in printed.out
    assert eval_run.main([*command, "--domains", "b"]) == 0  # our own results may be replaced
    assert list(json.loads((place / "r.json").read_text())["perplexity"]["domains"]) == ["b"]


def test_as_a_user_types_it(place: Path) -> None:
    command = [sys.executable, "eval/run.py", "--model", str(place / "model"), "--data", str(place / "store")]
    done = subprocess.run([*command, "--tasks", "perplexity"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (place / "model/results.json").exists()
    assert "geometric mean" in done.stdout


def damaged(place: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    model.transformer.wte.weight.data = change(model.transformer.wte.weight.data)
    model.save_pretrained(place / "damaged")
    return place / "damaged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{place}/nowhere"], "nowhere: is no token store"),
        (["--model", "{place}/store"], "--model {place}/store: cannot be loaded"),
        (["--model", "{place}/small"], "has a vocabulary of 60, the store's tokenizer of 64"),
        (["--model", "{place}/other"], "was trained with another tokenizer than the store's"),
        (["--model", "{place}/nan"], "the model on a: gives a log-likelihood of nan"),
        (["--domains", "aa"], "has no domain 'aa'; did you mean 'a'?"),
        (["--domains", "c"], "c: has no held-out tokens"),
        (["--sequence_length", "18"], "--sequence_length: 18 does not fit the model; give 2 to 17"),
        (["--sequence_length", "1"], "--sequence_length: 1 does not fit"),
        (["--batch_size", "0"], "invalid positive whole number value: '0'"),
        (["--tasks", "sciq"], "invalid choice: 'sciq'"),
        (["--output", "{place}/thesis.json"], "exists and holds no results of ours"),
        (["--output", "{place}/no/where.json"], "lies in no folder"),
    ],
)
def test_each_mistake_is_one_line_and_status_2(
    place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "thesis.json").write_text('["years of work"]')
    if "{place}/small" in arguments:
        save_model(place / "small", vocabulary=60)
    if "{place}/other" in arguments:
        save_model(place / "other", doge_ds_tokenizer_sha256="0" * 64)
    if "{place}/nan" in arguments:
        shutil.copytree(damaged(place, lambda weight: weight * float("nan")), place / "nan")
    given = {"--model": f"{place}/model", "--data": f"{place}/store", "--output": f"{place}/never.json"}
    given[arguments[0]] = arguments[1].format(place=place)
    status = eval_run.main([word for pair in given.items() for word in pair])
    printed = capsys.readouterr().err
    assert status == 2
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message.format(place=place) in lines[0]
    assert "Traceback" not in printed
    assert not (place / "never.json").exists()
    assert (place / "thesis.json").read_text() == '["years of work"]'


def test_a_model_that_says_nothing_of_its_tokenizer_is_measured_with_a_word(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(place / "silent")
    assert eval_run.main(["--model", str(place / "silent"), "--data", str(place / "store")]) == 0
    assert "only the vocabulary's size was checked" in capsys.readouterr().err
    assert json.loads((place / "silent/results.json").read_text())["sequence_length"] == 16  # all its positions
