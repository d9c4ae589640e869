"""eval/run.py as a command: results, table, and the one line for each mistake."""

import importlib.util
import json
import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import doge_ds
from doge_ds.data.tokens import TokenStore
from doge_ds.evaluation.models import load_model
from doge_ds.training.model import model_config
from tests.stores import make_store

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = str(ROOT / "tests/fixtures/tasks_measuring_nothing")
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


def damage(folder: Path, kind: str) -> None:
    """Write over the weights of a saved model."""
    file = folder / "model.safetensors"
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        return
    tensors = load_file(file)
    name = "transformer.ln_f.weight"
    if kind == "lacking":
        del tensors[name]
    else:
        tensors[name] = {"reshaped": torch.zeros(9), "nan": tensors[name] * math.nan}[kind]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three domains, one without held-out text, a model trained "on it", and things that do not fit."""
    place = tmp_path_factory.mktemp("evaluation")
    generator = np.random.default_rng(0)
    train = {name: generator.integers(0, 64, 100) for name in ("a", "b", "c")}
    store = make_store(place / "store", train, {"a": train["a"][:50], "b": train["b"][:33]})
    make_store(place / "unsplit", train)
    save_model(place / "model", doge_ds_sequence_length=10, doge_ds_tokenizer_sha256=store.manifest.tokenizer.sha256)
    save_model(place / "small", vocabulary=60)
    AutoConfig.for_model("vit").save_pretrained(place / "vit")
    save_model(place / "other", doge_ds_tokenizer_sha256="0" * 64)
    for kind in ("cut", "lacking", "reshaped", "nan"):
        damage(save_model(place / kind), kind)
    (place / "thesis.json").write_text('["perplexity of a hundred years"]')
    (place / "mixture.json").write_text('{"version": 1, "domains": {"a": 1.0}}')
    return place


def test_results_hold_every_domain_with_held_out_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(place / "model"), "--data", str(place / "store"), "--output", str(place / "r.json")]
    assert eval_run.main(command) == 0
    results = json.loads((place / "r.json").read_text())
    fingerprint = TokenStore(place / "store").fingerprint()
    perplexity = results.pop("perplexity")
    assert results == {
        "version": 1,
        "model": str(place / "model"),
        "data": {"path": str(place / "store"), "fingerprint": fingerprint},
        "sequence_length": 10,
        "stride": None,
        "document_mask": False,
        "versions": {
            "doge_ds": doge_ds.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": version("lm_eval"),
        },
    }
    assert {name: domain["tokens"] for name, domain in perplexity["domains"].items()} == {"a": 50, "b": 33}
    assert perplexity["domains"]["b"]["bytes"] == 99
    assert 30 < perplexity["geometric_perplexity"] <= perplexity["average_perplexity"] < 130
    printed = capsys.readouterr()
    assert "c has no held-out tokens and is left out" in printed.err
    assert f"{perplexity['domains']['a']['log_perplexity']:.4f}" in printed.out
    assert eval_run.main([*command, "--domains", "b"]) == 0  # our own results may be replaced
    assert list(json.loads((place / "r.json").read_text())["perplexity"]["domains"]) == ["b"]


def test_as_a_user_types_it(place: Path) -> None:
    command = [sys.executable, "eval/run.py", "--model", str(place / "model"), "--data", str(place / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (place / "model/results.json").exists()
    assert "geometric mean" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{place}/nowhere"], "nowhere: is no token store"),
        (["--model", "{place}/nowhere"], "--model {place}/nowhere: is no folder"),
        (["--model", "{place}/thesis.json"], "--model {place}/thesis.json: is no folder"),
        (["--model", "{place}/store"], "--model {place}/store: cannot be loaded"),
        (["--model", "{place}/cut"], "--model {place}/cut: cannot be loaded"),
        (["--model", "{place}/lacking"], "lacks 1 of the model's tensors"),
        (["--model", "{place}/reshaped"], "in another shape: transformer.ln_f.weight is the first"),
        (["--model", "{place}/small"], "has a vocabulary of 60, the store's tokenizer of 64"),
        (["--model", "{place}/vit"], "has a vocabulary of 0, the store's tokenizer of 64"),
        (["--model", "{place}/other"], "was trained with another tokenizer than the store's"),
        (["--model", "{place}/nan"], "the model on a: gives a log-likelihood of nan"),
        (["--domains", "aa"], "has no domain 'aa'; did you mean 'a'?"),
        (["--domains", "c"], "c: has no held-out tokens"),
        (["--data", "{place}/unsplit"], "unsplit: has no held-out tokens in any domain"),
        (["--device", "abacus"], "--device abacus: torch cannot use it"),
        (["--sequence_length", "18"], "--sequence_length: 18 does not fit the model; give 2 to 17"),
        (["--sequence_length", "1"], "--sequence_length: 1 does not fit"),
        (["--stride", "10"], "--stride: 10 does not fit windows of 10 tokens; give 1 to 9"),
        (["--batch_size", "0"], "invalid batch size value: '0'"),
        (["--num_fewshot", "-1"], "invalid whole number value: '-1'"),
        (["--limit", "1.5"], "invalid number of questions, or part of them below 1 value: '1.5'"),
        (["--tasks", "scik"], "--tasks scik: is no task of lm-eval; did you mean 'sciq'?"),
        (["--suite", "doge7"], "--tasks doge7: is no task of lm-eval; did you mean 'doge6'?"),
        (
            ["--suite", "doge6", "--data_root", "{place}/nowhere"],
            "--data_root {place}/nowhere: lacks aps/super_glue (copa, wic), allenai/sciq (sciq), EleutherAI/logiqa",
        ),
        (["--model", "{place}/model", "--tasks", "sciq", "--data_root", FIXTURE], "model: has no tokenizer"),
        (["--include_path", "{place}/nowhere"], "--include_path {place}/nowhere: is no folder"),
        (["--output", "{place}/thesis.json"], "exists and holds no results of ours"),
        (["--output", "{place}/mixture.json"], "exists and holds no results of ours"),
        (["--output", "{place}/no/where.json"], "nothing can be written there (No such file or directory)"),
        (["--output", "{place}/" + "x" * 300], "nothing can be written there (File name too long)"),
        (["--output", "/"], "--output /: names no file"),
        (["--model", "x" * 300], "is no folder here, and cannot be loaded ("),
    ],
)
def test_each_mistake_is_one_line_and_status_2(
    place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (place / name).read_bytes() for name in ("thesis.json", "mixture.json")}
    given = {"--model": f"{place}/model", "--data": f"{place}/store", "--output": f"{place}/never.json"}
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        given[name] = value.format(place=place)
    status = eval_run.main([word for pair in given.items() for word in pair])
    printed = capsys.readouterr().err
    assert status == 2
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message.format(place=place) in lines[0]
    assert "Traceback" not in printed
    assert not list(place.glob("never.json*"))
    assert {name: (place / name).read_bytes() for name in before} == before
    assert not list(place.glob("**/*.tmp"))


def test_a_model_that_says_nothing_of_its_tokenizer_is_measured_with_a_word(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(place / "silent")
    assert eval_run.main(["--model", str(place / "silent"), "--data", str(place / "store")]) == 0
    assert "only the vocabulary's size was checked" in capsys.readouterr().err
    assert json.loads((place / "silent/results.json").read_text())["sequence_length"] == 16  # all its positions


def test_a_model_with_a_padded_vocabulary_is_trained_and_measured(place: Path) -> None:
    sha256 = TokenStore(place / "store").manifest.tokenizer.sha256
    padded = save_model(place / "padded", vocabulary=70, doge_ds_tokenizer_sha256=sha256)
    config = model_config({"pretrained": str(padded)}, 64, 0, 16, tokenizer_sha256=sha256)
    assert config.vocab_size == 70
    assert eval_run.main(["--model", str(padded), "--data", str(place / "store")]) == 0
    perplexity = json.loads((padded / "results.json").read_text())["perplexity"]
    assert 30 < perplexity["geometric_perplexity"] < 140


def test_the_precision_of_the_checkpoint_is_kept(place: Path) -> None:
    AutoModelForCausalLM.from_pretrained(place / "model").to(torch.bfloat16).save_pretrained(place / "half")
    assert load_model(str(place / "half")).dtype == torch.bfloat16
