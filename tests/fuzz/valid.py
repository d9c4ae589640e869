"""Valid input of every kind that is fuzzed, and what must lie beside it."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.reporting.comparisons import summary_of
from tests.reporting.run_directories import STORE, TOKENIZER, make_base, make_proxy, results_of
from tests.stores import make_store

TOKENS = {"wiki": 4000, "books": 2000, "code": 100}
MIXTURE = {"wiki": 0.5, "books": 0.3, "code": 0.2}

# Run configurations.

DEEPSPEED = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2, "overlap_comm": True}, "wandb": {"team": "x"}}
SHARED = {
    "model": {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "resid_pdrop": 0.1},
    "data": {"path": "store", "sequence_length": 16, "train_domains": ["wiki", "books"], "max_epochs": 2.5},
    "deepspeed": "zero.json",
}
TRAINING = {
    "steps": 40,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "micro_batch_size": None,
    "seed": 7,
    "compile": False,
}
PROXY = {
    **SHARED,
    "training": {**TRAINING, "sequences_per_domain": 4},
    "doge": {
        "target": ["wiki"],
        "preset": "paper",
        "mu": 0.02,
        "clip": [0, 5],
        "selection": {"steps": 10, "tensors": -3},
        "normalize": "cosine",
    },
}
DOREMI_PROXY = {
    **{key: value for key, value in PROXY.items() if key != "doge"},
    "method": "doremi",
    "doremi": {"reference": "runs/reference/hf", "step_size": 0.5, "smoothing": 0.01, "gradient_dtype": "bfloat16"},
}
MIXTURES_COMPARED = {
    "proxy": "proxy.json",
    "base": "base.json",
    "seeds": [0, 3],
    "against": "uniform",
    "base_settings": {"training.steps": 20},
    "mixtures": {
        "uniform": "uniform",
        "doge": {"proxy": {"doge.mu": 0.1}, "stages": 4},
        "doremi": {"proxy": {"method": "doremi"}, "reference_mixture": "natural", "has_base": False},
    },
    "evaluation": {"domains": ["wiki"], "tasks": ["piqa"], "limit": 0.5},
    "groups": {"all": ["wiki"]},
}
STAGES = [{"from_step": 0, "mixture": MIXTURE}, {"from_step": 20, "mixture": "uniform"}]
BASE = {**SHARED, "training": {**TRAINING, "global_batch_size": 8, "export_dtype": "bfloat16"}, "mixture": STAGES}


def write_configurations(folder: Path) -> None:
    (folder / "zero.json").write_text(json.dumps(DEEPSPEED))
    (folder / "mixture.json").write_text(json.dumps({"version": 1, "domains": MIXTURE}))
    (folder / "proxy.json").write_text(json.dumps(PROXY))
    (folder / "base.json").write_text(json.dumps(BASE))


# Mixtures and schedules.

MIXTURE_FILE = {
    "version": 1,
    "domains": MIXTURE,
    "kind": "mean",
    "source": {"method": "doge", "step": 40, "tokenizer_sha256": "ab" * 32},
}
DOREMI = {"train_domain_weights": MIXTURE, "eval_domain_weights": MIXTURE}
SCHEDULE = {"version": 1, "schedule": STAGES, "source": {"method": "doge", "proxy_steps": [0, 20, 40]}}
FACTS = {
    "program": "train_base",
    "ranks": 2,
    "mixture": MIXTURE,
    "schedule": [{"from_step": 0, "mixture": MIXTURE}, {"from_step": 20, "mixture": {**MIXTURE, "wiki": 0.5}}],
    "mixture_given": [{"from_step": 0, "mixture": MIXTURE}],
}


# Stores.

IDS = {"wiki": np.arange(1, 49) % 8, "books": np.arange(1, 25) % 8}


def make_small_store(folder: Path) -> None:
    made = make_store(folder / "store", IDS, {"wiki": IDS["wiki"][:8], "books": IDS["books"][:16]})
    manifest = json.loads((made.path / "manifest.json").read_bytes())
    for name, record in manifest["domains"].items():
        for split in ("train", "valid"):
            record[split]["documents"] = int((made.tokens(name, split) == 0).sum())
    (made.path / "manifest.json").write_text(json.dumps(manifest))


def manifest_of_a_store() -> Any:
    """That of the store above."""
    with tempfile.TemporaryDirectory() as folder:
        make_small_store(Path(folder))
        return json.loads((Path(folder) / "store/manifest.json").read_bytes())


def make_store_and_configurations(folder: Path) -> None:
    write_configurations(folder)
    make_small_store(folder)


# Runs that the programs check before they start.

RUN = {
    "model": {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2},
    "data": {"path": "store", "sequence_length": 8, "max_epochs": 1000.0},
    "training": {**TRAINING, "micro_batch_size": 2, "eval_every": 10, "eval_windows": 1},
}
PROXY_RUN = {
    **RUN,
    "training": {**RUN["training"], "sequences_per_domain": 4},
    "doge": {"target": ["wiki"], "update_every": 2, "domains_per_step": 1},
    "deepspeed": {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}},
}
BASE_RUN = {
    **RUN,
    "training": {**RUN["training"], "global_batch_size": 4},
    "mixture": [{"from_step": 0, "mixture": {"wiki": 0.5, "books": 0.5}}, {"from_step": 20, "mixture": "natural"}],
    "deepspeed": {"zero_optimization": {"stage": 3}, "csv_monitor": {"enabled": False}},
}


# Recipes.

RECIPE = {
    "sources": [
        {
            "dataset": "org/name",
            "configuration": "all",
            "domain_field": "meta.set",
            "domains": {"A": "a", "B": "b"},
            "revision": "main",
        },
        {"files": ["notes/", "more.jsonl.zst"], "domain": "notes", "comment": ["x", "y"]},
    ],
    "tokenizer": "gpt2",
    "valid_tokens": 1000,
    "deduplicate": True,
}


# Run directories.


def make_runs(folder: Path) -> None:
    make_proxy(folder / "proxy", ["wiki", "books"], target=["code"], steps=40)
    make_base(folder / "base", {"wiki": 0.5, "books": 0.5}, {"wiki": 3.0, "code": None})


def metrics_of_runs() -> tuple[list[Any], list[Any]]:
    """metrics.jsonl of both runs."""
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder))
        texts = (Path(folder) / "proxy/metrics.jsonl").read_text().splitlines()
        proxy = [json.loads(text) for text in texts]
        base = [json.loads(text) for text in (Path(folder) / "base/metrics.jsonl").read_text().splitlines()]
    proxy[1] |= {"gram_rows": ["wiki", "books", "code"], "warnings": ["the weights have collapsed"]}
    return proxy, base


COMPARISON = {
    "version": 1,
    "models": ["uniform", "doge"],
    "rows": [
        {"measure": "log-perplexity", "of": "wiki", "model": "uniform", "value": 3.25},
        {
            "measure": "log-perplexity",
            "of": "wiki",
            "model": "doge",
            "value": 3.125,
            "difference": -0.125,
            "low": -0.2,
            "high": -0.1,
            "exceeds_noise": True,
        },
    ],
}
SUMMARY = summary_of(
    "fuzzed",
    domains=("wiki", "code"),
    seeds=(0, 1),
    methods={"uniform": None, "doge": "doge"},
    without_bases=(),
    tasks=("sciq",),
    steps=(10, 20),
)
SELECTION = {
    "measured_steps": 10,
    "selected": ["h.0.w"],
    "share_of_parameters": 0.25,
    "cancellation_effect": {"h.0.w": 0.5, "h.1.w": 2.0},
}
PROXY_LINES, BASE_LINES = metrics_of_runs()
RESULTS = {
    **results_of({"wiki": 3.0, "code": None}),
    "few_shot": {"num_fewshot": 5, "data_root": "tasks"},
    "tasks": {"sciq": {"acc": 0.25, "acc_stderr": 0.01}, "copa": {"acc": None}},
    "mean_accuracy": 0.25,
}
BASE_FACTS = {**FACTS, "store": STORE, "tokenizer_sha256": TOKENIZER}
MANIFEST = manifest_of_a_store()
RUN_CONFIG = {"model": {"model_type": "gpt2"}, "data": SHARED["data"], "deepspeed": DEEPSPEED, "training": {
    "steps": 40, "learning_rate": 0.01, "sequences_per_domain": 4}, "doge": {"target": ["code"]}}  # fmt: skip
