"""eval/run.py on two ranks, killed and called again, and on checkpoints: the numbers of one undisturbed rank."""

import importlib.util
import json
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.data.prepare import prepare
from doge_ds.data.preparing.fates import HeldOutRule
from doge_ds.data.preparing.tokenizer_training import train_tokenizer
from tests.distributed.ranks import ROOT, Ranks, deepspeed

FIXTURE = ROOT / "tests/fixtures/tasks_measuring_nothing"
TASKS = ["copa", "sciq", "piqa"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three domains, and two models with its tokenizer."""
    place = tmp_path_factory.mktemp("evaluation")
    texts = [line for file in sorted(FIXTURE.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    tokenizer = train_tokenizer("byte_level_bpe", texts, 400, place / "tokenizer")
    for number, name in enumerate("abc"):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::3] * (1 + 3 * number)]
        (place / f"{name}.jsonl").write_text("".join(lines))
    inputs = {name: [place / f"{name}.jsonl"] for name in "abc"}
    prepare(inputs, place / "store", tokenizer=place / "tokenizer", held_out=HeldOutRule(fraction=0.5), workers=1)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        shape = {"n_layer": 2, "n_embd": 48, "n_head": 2, "n_positions": 1024, "initializer_range": 0.2}
        config = AutoConfig.for_model("gpt2", **shape, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
        AutoModelForCausalLM.from_config(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def command(place: Path, output: str, *more: str) -> list[str]:
    options = ["--model", str(place / "first"), str(place / "second"), "--data", str(place / "store")]
    options += ["--sequence_length", "24", "--stride", "9", "--batch_size", "7", "--output", str(place / output)]
    return [*options, "--tasks", *TASKS, "--data_root", str(FIXTURE), *more]


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, Any]:
    assert load_program().main(command(place, "undisturbed")) == 0
    return contents(place / "undisturbed")


def load_program() -> ModuleType:
    """eval/run.py in this process, which has lm-eval's index of tasks already: a start takes 10 seconds."""
    specification = importlib.util.spec_from_file_location("eval_run_here", ROOT / "eval/run.py")
    assert specification is not None
    assert specification.loader is not None
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    return program


def contents(folder: Path) -> dict[str, Any]:
    assert sorted(path.name for path in folder.iterdir()) == [
        *("comparison.csv", "comparison.json", "comparison.md", "first.json", "second.json")
    ]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("first", "second", "comparison")}


def flat(values: Any, name: str = "") -> dict[str, Any]:
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return {key: value for part, inner in pairs for key, value in flat(inner, f"{name}/{part}").items()}
    return {name: values}


def test_two_ranks_give_the_numbers_of_one(place: Path, undisturbed: dict[str, Any]) -> None:
    done = deepspeed(2, "eval/run.py", *command(place, "ranks"))
    assert done.returncode == 0, done.stdout
    found, wanted = flat(contents(place / "ranks")), flat(undisturbed)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, float) and "noise" not in key:
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
        else:
            assert found[key] == value, key
    accuracies = {value for key, value in wanted.items() if key.endswith("/acc")}
    assert len(accuracies) > 2
    order = re.findall(r"^(\w+) \(\d of 3 tasks\)", done.stdout, re.MULTILINE)
    assert sorted(order) == sorted(2 * TASKS), "each task is run once for each model, by one rank"


def test_killed_and_called_again_it_measures_what_is_left(
    place: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output, pieces = "killed", 5  # the first model's three domains, and two of its tasks
    ranks = Ranks(1, "eval/run.py", *command(place, output))
    unfinished = place / output / "unfinished"
    until = time.monotonic() + 120
    while not unfinished.exists() or sum(path.suffix != ".tmp" for path in unfinished.iterdir()) < pieces:
        assert time.monotonic() < until
        assert ranks.processes[0].poll() is None
        time.sleep(0.002)
    ranks.kill()
    kept = {path.name: path.read_bytes() for path in unfinished.iterdir() if path.suffix != ".tmp"}
    assert len(kept) < 12, "it was killed before its end"
    assert load_program().main(command(place, output)) == 0
    printed = capsys.readouterr().err
    assert contents(place / output) == undisturbed
    tasks_kept = sum(name.startswith("task") for name in kept)
    assert len(re.findall(r"\(\d of \d tasks\)", printed)) == 2 * len(TASKS) - tasks_kept
