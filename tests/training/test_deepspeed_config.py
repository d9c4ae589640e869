"""Each number has one owner."""

import pytest

from doge_ds.config import ProxyTrainingConfig
from doge_ds.errors import ConfigError
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import cut_into_micro_batches
from doge_ds.training.launch import Ranks

TRAINING = ProxyTrainingConfig(
    steps=10, sequences_per_domain=24, learning_rate=0.01, weight_decay=0.1, gradient_clipping=0.5
)
RANKS = Ranks(rank=0, world_size=3, local_rank=0)


def complete(config: dict, stage: int = 2) -> dict:
    return complete_deepspeed_config(config, TRAINING, stage, 4, 2, RANKS)


def test_the_run_configurations_numbers_are_written_and_the_rest_is_kept() -> None:
    given = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 7},
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "betas": [0.8, 0.9], "lr": "auto"}},
        "bf16": {"enabled": True},
        "gradient_clipping": "auto",
        "tensorboard": {"enabled": True},  # our own part opens it
    }
    completed = complete(given)
    assert completed == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 7},
        "optimizer": {
            "type": "AdamW",
            "params": {"torch_adam": True, "betas": [0.8, 0.9], "lr": 0.01, "weight_decay": 0.1},
        },
        "bf16": {"enabled": True},
        "gradient_clipping": 0.5,
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
    }
    assert given["optimizer"]["params"] == {"torch_adam": True, "betas": [0.8, 0.9], "lr": "auto"}
    assert given["tensorboard"] == {"enabled": True}


ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "deepspeed.zero_optimization.stage: is 0; this program needs 2"),
        ({"zero_optimization": {"stage": 3}}, "is 3; this program needs 2: see ds_configs/zero2.json"),
        ({**ZERO2, "train_batch_size": 32}, "deepspeed.train_batch_size: says 32 where the run configuration gives 24"),
        ({**ZERO2, "gradient_clipping": 1.0}, "deepspeed.gradient_clipping: says 1.0"),
        ({**ZERO2, "gradient_accumulation_steps": 4}, "says 4 where the run configuration gives 2; delete it there"),
        ({**ZERO2, "scheduler": {"type": "WarmupLR"}}, "deepspeed.scheduler: belongs to the run configuration"),
        ({**ZERO2, "optimizer": {"type": "Lamb"}}, "deepspeed.optimizer.type: is 'Lamb'"),
        (
            {**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": 0.1}}},
            "deepspeed.optimizer.params.lr: says 0.1 where the run configuration gives 0.01",
        ),
        ({**ZERO2, "wandb": True}, "deepspeed: wandb: True is no object"),
        (
            {**ZERO2, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}},
            "deepspeed.optimizer: is DeepSpeed's own Adam, which is for GPUs, and DeepSpeed finds none here; "
            "use ds_configs/zero2_cpu.json",
        ),
    ],
)
def test_a_contradiction_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(config)
    assert message in str(caught.value)


def test_micro_batches_default_to_all_that_a_rank_gets() -> None:
    assert cut_into_micro_batches("sequences_per_domain", 24, None, 3) == (8, 1)
    assert cut_into_micro_batches("sequences_per_domain", 24, 2, 3) == (2, 4)


@pytest.mark.parametrize(
    ("sequences", "micro", "ranks", "would_do"),
    [(10, None, 4, "8 or 12"), (3, None, 4, "4"), (24, 5, 3, "15 or 30"), (24, 16, 2, "32")],
)
def test_a_step_that_cannot_be_cut_is_refused_with_what_would_do(
    sequences: int, micro: int | None, ranks: int, would_do: str
) -> None:
    with pytest.raises(ConfigError, match=f"{sequences} cannot be divided by {ranks} ranks.*; {would_do} would do"):
        cut_into_micro_batches("sequences_per_domain", sequences, micro, ranks)
