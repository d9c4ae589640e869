"""Few-shot accuracy: equal to lm-eval's own command line, and to what can be computed by hand.

The questions are those of tests/fixtures/tasks_measuring_nothing.
"""

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from doge_ds.data.preparing.tokenizer_training import train_tokenizer
from doge_ds.errors import ConfigError, ModelError
from doge_ds.evaluation.fewshot import FewShotOptions, TaskResult, mean_accuracy, measure_task
from doge_ds.evaluation.tasks import SUITES, dataset_of, task_manager

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests/fixtures/tasks_measuring_nothing"
DOGE6 = SUITES["doge6"]
OPTIONS = FewShotOptions(data_root=FIXTURE, batch_size=4)


def items(repository: str, configuration: str, split: str) -> list[dict[str, Any]]:
    file = FIXTURE / repository / configuration / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights and its tokenizer, which was trained on the questions."""
    folder = tmp_path_factory.mktemp("model")
    texts = [line for file in sorted(FIXTURE.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    # Byte-level BPE never merges over a space: a choice has the same tokens in a prompt as alone.
    train_tokenizer("byte_level_bpe", texts, 400, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": 48, "n_head": 2, "n_positions": 1024, "initializer_range": 0.2}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model("gpt2", **shape, **ends, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(model: Any, tokenizer: Any) -> dict[str, TaskResult]:
    return {task: measure_task(model, tokenizer, task, OPTIONS, "cpu") for task in DOGE6}


def test_equal_to_lm_evals_command_line_in_all_six_tasks(
    folder: Path, ours: dict[str, TaskResult], tmp_path: Path
) -> None:
    for task in DOGE6:
        stock = task_manager(None).task_index[task].yaml_path
        path = yaml.safe_load(stock.read_text().replace("!function", ""))["dataset_path"]
        redirected = {"include": str(stock), "task": task, "dataset_path": str(FIXTURE / path)}
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(redirected))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder}"]
    command += ["--tasks", ",".join(DOGE6), "--include_path", str(tmp_path), "--num_fewshot", "5", "--batch_size", "4"]
    command += ["--seed", "1234,1234,1234,1234", "--device", "cpu", "--output_path", str(tmp_path / "theirs")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf_home")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(file.read_text())
    for task in DOGE6:
        found = {key.removesuffix(",none"): value for key, value in theirs["results"][task].items() if "," in key}
        assert ours[task].metrics == found, task
        assert ours[task].num_fewshot == theirs["n-shot"][task] == 5
        assert ours[task].questions == theirs["n-samples"][task]["effective"] == 12
        assert ours[task].version == theirs["versions"][task]
    values = [result.metrics["acc"] for result in ours.values()]
    assert len(set(values)) > 2, "scores that are all equal would show nothing"


# What each task's choices are, written from the tasks' definitions: continuations of the context, and which is right.
CHOICES: dict[str, tuple[str, str, str, Callable[[dict[str, Any]], tuple[list[str], int]]]] = {
    "sciq": (
        "allenai/sciq",
        "",
        "test",
        lambda doc: ([doc[key] for key in ("distractor1", "distractor2", "distractor3", "correct_answer")], 3),
    ),
    "piqa": ("baber/piqa", "", "validation", lambda doc: ([doc["sol1"], doc["sol2"]], doc["label"])),
    "wic": ("aps/super_glue", "wic", "validation", lambda doc: (["no", "yes"], doc["label"])),
    "logiqa": ("EleutherAI/logiqa", "logiqa", "test", lambda doc: (doc["options"], "abcd".index(doc["label"]))),
    "copa": (
        "aps/super_glue",
        "copa",
        "validation",
        lambda doc: ([doc[key][0].lower() + doc[key][1:] for key in ("choice1", "choice2")], doc["label"]),
    ),
}


def test_a_uniform_model_scores_what_can_be_computed_by_hand(model: Any, tokenizer: Any) -> None:
    """Every token has likelihood 1/V: the choice of the fewest tokens wins, of several the first; acc_norm divides by
    the choice's characters. In winogrande both choices share their continuation, so all are ties."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    uniform = AutoModelForCausalLM.from_config(config).eval()
    uniform.lm_head.weight.data.zero_()
    for task, (repository, configuration, split, choices_of) in CHOICES.items():
        found = measure_task(uniform, tokenizer, task, OPTIONS, "cpu")
        by_tokens, by_characters = [], []
        for doc in items(repository, configuration, split):
            choices, right = choices_of(doc)
            lengths = [len(tokenizer.encode(f" {choice}", add_special_tokens=False)) for choice in choices]
            by_tokens.append(float(lengths.index(min(lengths)) == right))
            costs = [length / len(choice) for length, choice in zip(lengths, choices, strict=True)]
            by_characters.append(float(costs.index(min(costs)) == right))
        assert found.correct == by_tokens, task
        assert found.metrics["acc"] == pytest.approx(sum(by_tokens) / len(by_tokens))
        if "acc_norm" in found.metrics:
            assert found.metrics["acc_norm"] == pytest.approx(sum(by_characters) / len(by_characters)), task
    ties = measure_task(uniform, tokenizer, "winogrande", OPTIONS, "cpu")
    answers = [item["answer"] for item in items("allenai/winogrande", "winogrande_xl", "validation")]
    assert ties.correct == [float(answer == "1") for answer in answers]


def test_a_model_that_learned_the_answers_scores_1(model: Any, tokenizer: Any) -> None:
    learner = copy.deepcopy(model).train()
    texts = [
        f"Question: {item['goal']}\nAnswer: {item['sol2' if item['label'] else 'sol1']}"
        for item in items("baber/piqa", "", "validation")
    ]
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    inputs = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (inputs.shape[1] - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        learner(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    options = FewShotOptions(num_fewshot=0, data_root=FIXTURE)
    assert measure_task(learner.eval(), tokenizer, "piqa", options, "cpu").metrics["acc"] == 1.0
    assert measure_task(model, tokenizer, "piqa", options, "cpu").metrics["acc"] != 1.0


def test_the_batch_size_reaches_the_model_and_changes_no_answer(
    model: Any, tokenizer: Any, ours: dict[str, TaskResult], capsys: pytest.CaptureFixture[str]
) -> None:
    for size, wanted in ((1, {1}), (7, {7, 24 % 7})):
        seen: list[int] = []
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(len(args[0] if args else kwargs["input_ids"])),
            with_kwargs=True,
        )
        options = FewShotOptions(data_root=FIXTURE, batch_size=size)
        found = measure_task(model, tokenizer, "copa", options, "cpu")
        hook.remove()
        assert set(seen) == wanted
        assert found == ours["copa"]
    capsys.readouterr()
    assert measure_task(model, tokenizer, "copa", replace(OPTIONS, batch_size="auto"), "cpu") == ours["copa"]
    assert capsys.readouterr().out == ""


def test_a_limit_the_seed_and_the_examples_are_passed_on(
    model: Any, tokenizer: Any, ours: dict[str, TaskResult]
) -> None:
    def first_prompt(**changes: Any) -> str:
        options = FewShotOptions(data_root=FIXTURE, log_samples=True, **{"limit": 1, **changes})
        result = measure_task(model, tokenizer, "sciq", options, "cpu")
        assert result.samples is not None
        prompt: str = result.samples[0]["arguments"][0][0]
        return prompt

    assert first_prompt().count("Question:") == 6
    assert first_prompt(num_fewshot=0).count("Question:") == 1
    assert first_prompt() == first_prompt(seed=1234) != first_prompt(seed=1)
    part = measure_task(model, tokenizer, "sciq", FewShotOptions(data_root=FIXTURE, limit=0.25), "cpu")
    assert (part.questions, part.correct) == (3, ours["sciq"].correct[:3])


def test_a_rank_of_many_runs_its_task_alone(
    model: Any, tokenizer: Any, ours: dict[str, TaskResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval gives results to LOCAL_RANK 0 only, and splits questions where it sees several ranks."""
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert measure_task(model, tokenizer, "wic", OPTIONS, "cpu") == ours["wic"]
    assert os.environ["LOCAL_RANK"] == "3"


def test_the_mean_is_over_tasks_that_have_an_accuracy(ours: dict[str, TaskResult]) -> None:
    values = [result.metrics["acc"] for result in ours.values()]
    assert mean_accuracy(ours) == pytest.approx(sum(value or 0.0 for value in values) / 6)
    assert mean_accuracy({"generated": TaskResult({"exact_match": 0.5}, 0, 1, 1.0, [])}) is None
    assert all(0 < (result.metrics["acc_stderr"] or 0) < 0.2 for result in ours.values())


def test_summaries_are_json_without_the_questions(ours: dict[str, TaskResult]) -> None:
    summary = json.loads(json.dumps(ours["sciq"].summary()))
    assert set(summary) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "num_fewshot", "questions", "version"}


def test_weights_that_are_not_numbers_are_refused(model: Any, tokenizer: Any) -> None:
    damaged = copy.deepcopy(model)
    damaged.transformer.ln_f.weight.data[3] = math.nan
    with pytest.raises(ModelError, match=r"the model on wic: gives a likelihood of nan; its weights are damaged"):
        measure_task(damaged, tokenizer, "wic", OPTIONS, "cpu")


@pytest.mark.parametrize(
    ("task", "files", "problem"),
    [
        ("copa", {"train.jsonl": '{"premise": "x"}'}, r"ValueError: .*copa"),
        ("logiqa", {"logiqa.py": "", "train.jsonl": "{}"}, "RuntimeError: Dataset scripts are no longer supported"),
        ("piqa", {"train.jsonl": '{"goal": "x"}'}, "KeyError: .*validation"),
        ("piqa", {"train.jsonl": '{"a": 1}', "validation.jsonl": '{"a": 1}'}, "UndefinedError: 'goal' is undefined"),
        ("piqa", {"train.parquet": "PAR1 and no more", "validation.parquet": "PAR1 and no more"}, "magic bytes"),
    ],
    ids=["configuration", "program", "split", "columns", "damaged"],
)
def test_a_dataset_that_cannot_be_used_is_one_line(
    model: Any, tokenizer: Any, tmp_path: Path, task: str, files: dict[str, str], problem: str
) -> None:
    place = tmp_path / (dataset_of(task) or ("",))[0]
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"--tasks {task}: cannot be loaded \(.*{problem}") as caught:
        measure_task(model, tokenizer, task, FewShotOptions(data_root=tmp_path), "cpu")
    assert str(caught.value).endswith(f"eval/prefetch.py --tasks {task} --to DIR and give --data_root DIR")
    assert len(str(caught.value).splitlines()) == 1


def test_more_examples_than_there_are_is_one_line(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"--tasks copa: cannot be run \(.*\); lower --num_fewshot"):
        measure_task(model, tokenizer, "copa", replace(OPTIONS, num_fewshot=15), "cpu")


def test_a_task_of_several_filters_has_each_question_once(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    stock = task_manager(None).task_index["piqa"].yaml_path
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("one", "two")]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"include": str(stock), "task": "mine", "filter_list": filters}))
    found = measure_task(model, tokenizer, "mine", replace(OPTIONS, include_path=tmp_path), "cpu")
    assert found.questions == len(found.correct) == 12
    assert found.metrics["acc,one"] == found.metrics["acc,two"] == pytest.approx(sum(found.correct) / 12)
