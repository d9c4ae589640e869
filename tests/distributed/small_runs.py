"""A small store and run configurations for tests that start the programs."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.distributed.ranks import ROOT
from tests.stores import make_store

SEQUENCE_LENGTH = 16
MODEL = {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "n_head": 2, "attn_pdrop": 0.1, "resid_pdrop": 0.1}


def small_store(path: Path) -> Path:
    """Domains a, b, c and x of 64 token ids; in x, as in b, about half of the tokens repeat the one before."""
    generator = np.random.default_rng(7)

    def text(step: int, repeating: float, count: int) -> np.ndarray:
        frequencies = 1 / (1 + (np.arange(64) * step) % 64)
        ids = generator.choice(64, count, p=frequencies / frequencies.sum())
        repeats = generator.random(count) < repeating
        for place in range(1, count):
            if repeats[place]:
                ids[place] = ids[place - 1]
        return ids

    words = {"</s>": 0, **{f"w{number}": number for number in range(1, 64)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    saved = path.with_name(path.name + "_tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(saved)
    kinds = {"a": (3, 0.0), "b": (5, 0.5), "c": (7, 0.1), "x": (5, 0.4)}
    make_store(
        path,
        {name: text(*kind, 12_000) for name, kind in kinds.items()},
        {name: text(*kind, 1_500) for name, kind in kinds.items()},
        tokenizer_folder=saved,
    )
    return path


def write_config(path: Path, store: Path, stage: str, **changes: dict) -> Path:
    """A run configuration of 40 short steps; `changes` replace keys of its sections."""
    training = {
        "steps": 40,
        "learning_rate": 0.003,
        "warmup_steps": 2,
        "log_every": 1,
        "checkpoint_every": 6,
        "seed": 4,
    }
    training |= {"sequences_per_domain": 4} if stage == "proxy" else {"global_batch_size": 8, "micro_batch_size": 2}
    config = {
        "model": MODEL,
        "data": {"path": str(store), "sequence_length": SEQUENCE_LENGTH},
        "training": training,
        "deepspeed": str(ROOT / "ds_configs" / ("zero2_cpu.json" if stage == "proxy" else "zero3_cpu.json")),
    }
    if stage == "proxy":
        config["doge"] = {"target": ["x"], "mu": 0.02}
    else:
        config["data"]["train_domains"] = ["a", "b", "c"]
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    path.write_text(json.dumps(config))
    return path
