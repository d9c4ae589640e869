"""Which domains the training programs measure between their steps, and what they say of the others."""

from pathlib import Path

import numpy as np
import pytest

from doge_ds.config import ProxyConfig
from doge_ds.errors import ConfigError
from doge_ds.held_out import held_out_line, held_out_sample
from doge_ds.training.launch import Ranks
from tests.stores import make_store

RANKS = Ranks(rank=0, world_size=1, local_rank=0)


def config(**training: object) -> ProxyConfig:
    return ProxyConfig.model_validate(
        {
            "model": {"model_type": "gpt2"},
            "data": {"path": "store", "sequence_length": 8},
            "training": {"steps": 10, "sequences_per_domain": 4, "learning_rate": 0.1, **training},
            "deepspeed": {},
        }
    )


def test_domains_without_held_out_text_are_left_out_and_named(tmp_path: Path) -> None:
    tokens = np.arange(200) % 64
    store = make_store(tmp_path / "store", dict.fromkeys("abcd", tokens), {"a": tokens[:50], "d": tokens[:3]})
    sample = held_out_sample(config(eval_every=2), store, ["a", "b", "c", "d", "a"], 4, RANKS)
    assert sample.domains == ["a", "d"]
    (line,) = held_out_line(config(eval_every=2), ["a", "b", "c", "d"], sample)
    assert line == "without held-out text, and not evaluated during training: b, c"
    assert held_out_line(config(eval_every=2), ["a", "d"], sample) == []
    with pytest.raises(ConfigError, match=r"training.eval_every: no domain of the run has held-out text in"):
        held_out_sample(config(eval_every=2), store, ["b", "c"], 4, RANKS)


def test_without_eval_every_nothing_is_measured_or_said(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", dict.fromkeys("ab", np.arange(200) % 64))
    sample = held_out_sample(config(), store, ["a", "b"], 4, RANKS)
    assert sample.domains == []
    assert held_out_line(config(), ["a", "b"], sample) == []
