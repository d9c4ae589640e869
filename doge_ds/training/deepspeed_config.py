"""The run configuration's numbers written into DeepSpeed's configuration: each number has one owner.

The DeepSpeed file owns precision, ZeRO, communication, offload, monitors and the optimizer's implementation and betas.
The run configuration owns batch sizes, learning rate, weight decay, schedule and clipping; where the DeepSpeed file
names one of these with another value, the run is refused.
"""

import copy
from typing import Any

from deepspeed.accelerator import get_accelerator

from doge_ds.config import TrainingConfig
from doge_ds.errors import ConfigError
from doge_ds.training.launch import Ranks
from doge_ds.training.monitor import MONITORS


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
        ConfigError: another ZeRO stage, a number that the run configuration owns with another value, a scheduler, an
            optimizer other than AdamW, or one for GPUs where there is none.
    """
    config = copy.deepcopy(deepspeed)
    for name in MONITORS:  # training/monitor.py opens them
        _section(config, name, {})
        del config[name]
    zero = _section(config, "zero_optimization", {})
    if (found := zero.get("stage", 0)) != stage:
        raise ConfigError(
            "deepspeed.zero_optimization.stage",
            f"is {found}",
            f"this program needs {stage}: see ds_configs/zero{stage}.json",
        )
    if stage == 2:
        _refuse_what_the_hook_cannot_use(zero, _section(config, "bf16", {}))
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
    optimizer = _section(config, "optimizer", {"type": "AdamW"})
    if optimizer.get("type") != "AdamW":
        raise ConfigError("deepspeed.optimizer.type", f"is {optimizer.get('type')!r}", "AdamW is what is supported")
    parameters = _section(optimizer, "params", {})
    owned = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    _write_owned(parameters, owned, "deepspeed.optimizer.params")
    if get_accelerator().device_name() == "cpu" and not parameters.get("torch_adam"):
        raise ConfigError(
            "deepspeed.optimizer",
            "is DeepSpeed's own Adam, which is for GPUs, and DeepSpeed finds none here",
            f"use ds_configs/zero{stage}_cpu.json, or set deepspeed.optimizer.params.torch_adam=true",
        )
    return config


def _section(config: dict[str, Any], key: str, default: dict[str, Any]) -> dict[str, Any]:
    """A part of the configuration, or the default where it is missing. Raises ConfigError where it is no object."""
    found = config.setdefault(key, default)
    if not isinstance(found, dict):
        raise ConfigError(f"deepspeed: {key}", f"{found!r} is no object", "see ds_configs/ for how it is written")
    return found


def _refuse_what_the_hook_cannot_use(zero: dict[str, Any], bf16: dict[str, Any]) -> None:
    """Offloaded gradients are not where DoGE reads them; unchecked ones would let a NaN be stepped on."""
    if "offload_optimizer" in zero:
        where = "deepspeed.zero_optimization.offload_optimizer"
        raise ConfigError(where, "cannot be used by the proxy", "delete it: a proxy is small")
    switches = {
        "deepspeed.bf16.check_grad_overflow": bf16.get("check_grad_overflow", True),
        "deepspeed.zero_optimization.compute_grad_norm": zero.get("compute_grad_norm", True),
    }
    for where, value in switches.items():
        if not value:
            raise ConfigError(where, "must stay on in the proxy, which relies on it to skip NaN steps", "delete it")


def _write_owned(section: dict[str, Any], owned: dict[str, Any], where: str) -> None:
    """Write numbers that the run configuration owns; "auto" and the same value are no contradiction."""
    for key, value in owned.items():
        if section.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"{where}.{key}", f"says {section[key]} where the run configuration gives {value}", "delete it there"
            )
        section[key] = value
