"""The run configuration's numbers written into DeepSpeed's configuration: each number has one owner.

The DeepSpeed file owns precision, ZeRO, communication, offload, monitors and the optimizer's implementation and betas.
The run configuration owns batch sizes, learning rate, weight decay, schedule and clipping; where the DeepSpeed file
names one of these with another value, the run is refused.
"""

import copy
from typing import Any

from doge_ds.config import TrainingConfig
from doge_ds.errors import ConfigError
from doge_ds.training.launch import Ranks


def complete_deepspeed_config(
    deepspeed: dict[str, Any],
    training: TrainingConfig,
    stage: int,
    micro_batch_size: int,
    accumulation_steps: int,
    ranks: Ranks,
) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` gets.

    Args:
        deepspeed: the user's part; left as it is.
        stage: the ZeRO stage that the program needs.
        micro_batch_size: sequences of one forward pass on one rank.
        accumulation_steps: micro-batches of one optimizer step, as DeepSpeed shall count them.

    Raises:
        ConfigError: another ZeRO stage, a number that the run configuration owns with another value, a scheduler, or an
            optimizer other than Adam's family.
    """
    config = copy.deepcopy(deepspeed)
    if (found := config.get("zero_optimization", {}).get("stage", 0)) != stage:
        raise ConfigError(
            "deepspeed.zero_optimization.stage",
            f"is {found}",
            f"this program needs {stage}: see ds_configs/zero{stage}.json",
        )
    if "scheduler" in config:
        raise ConfigError(
            "deepspeed.scheduler",
            "belongs to the run configuration",
            "delete it; set training.learning_rate and warmup_steps",
        )
    owned = {
        "train_batch_size": micro_batch_size * accumulation_steps * ranks.world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": training.gradient_clipping,
    }
    _write_owned(config, owned, "deepspeed")
    optimizer = config.setdefault("optimizer", {"type": "AdamW"})
    if optimizer.get("type") != "AdamW":
        raise ConfigError("deepspeed.optimizer.type", f"is {optimizer.get('type')!r}", "AdamW is what is supported")
    owned = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    _write_owned(optimizer.setdefault("params", {}), owned, "deepspeed.optimizer.params")
    return config


def _write_owned(section: dict[str, Any], owned: dict[str, Any], where: str) -> None:
    """Write numbers that the run configuration owns; "auto" and the same value are no contradiction."""
    for key, value in owned.items():
        if section.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"{where}.{key}", f"says {section[key]} where the run configuration gives {value}", "delete it there"
            )
        section[key] = value
