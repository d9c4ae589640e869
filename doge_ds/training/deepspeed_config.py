"""The run configuration's numbers written into DeepSpeed's configuration: each number has one owner.

The DeepSpeed file owns precision, ZeRO, communication, offload, monitors and the optimizer's implementation and betas.
The run configuration owns batch sizes, learning rate, weight decay, schedule and clipping; where the DeepSpeed file
names one of these with another value, the run is refused. All else DeepSpeed reads here once, before other ranks are
waited for: later it would end in a traceback, or train without a key that it does not know (`bf17`: in fp32).
"""

import copy
import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError, DtypeEnum
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.utils import logger
from pydantic import ValidationError

from doge_ds.config_sections import TrainingConfig
from doge_ds.errors import ConfigError, nearest
from doge_ds.training.launch import Ranks
from doge_ds.training.monitor import MONITORS

SEE_DEEPSPEED = "see DeepSpeed's documentation of its configuration"


def complete_deepspeed_config(
    deepspeed: dict[str, Any],
    training: TrainingConfig,
    stage: int,
    micro_batch_size: int,
    accumulation_steps: int,
    ranks: Ranks,
    runs_here: bool = True,
) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` gets.

    Args:
        deepspeed: the user's part; left as it is.
        stage: the ZeRO stage that the program needs.
        micro_batch_size: sequences of one forward pass on one rank.
        accumulation_steps: micro-batches of one optimizer step, as DeepSpeed shall count them.
        runs_here: False for a plan, whose machine need not have the devices.

    Raises:
        ConfigError: another ZeRO stage, a number that the run configuration owns with another value, a scheduler, an
            optimizer other than AdamW, or one for GPUs where there is none; a key that DeepSpeed does not look at, or a
            value that it cannot use.
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
    _refuse_what_deepspeed_cannot_read(config, stage)
    _refuse_what_adamw_cannot_use(parameters, "offload_optimizer" in zero)
    if runs_here and get_accelerator().device_name() == "cpu" and not parameters.get("torch_adam"):
        twin = f"zero{stage}{'_offload' if 'offload_optimizer' in zero else ''}_cpu.json"
        raise ConfigError(
            "deepspeed.optimizer",
            "is DeepSpeed's own Adam, which is for GPUs, and DeepSpeed finds none here",
            f"use ds_configs/{twin}, or set deepspeed.optimizer.params.torch_adam=true",
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
    for key in ("offload_optimizer", "cpu_offload"):  # the new name and the old one
        if key in zero:
            where = f"deepspeed.zero_optimization.{key}"
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


class _Noting(dict[str, Any]):
    """A dictionary that notes which of its keys, there or not, it is asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:  # also for `**section`, which takes all that is there
        self.asked.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:  # for `key in section.keys()`
        return self

    def items(self) -> Any:
        self.asked.update(super().keys())
        return super().items()

    def __copy__(self) -> "_Noting":  # DeepSpeed reads a copy
        return self


def _refuse_what_deepspeed_cannot_read(config: dict[str, Any], stage: int) -> None:
    """Let DeepSpeed read every key by itself, so that the one at fault can be named, then all of them together.

    Raises:
        ConfigError: a key, or a key of a section, that DeepSpeed does not look at, or a value that it cannot use.
    """
    config = copy.deepcopy(config)  # DeepSpeed writes defaults into some sections that it reads
    least = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    defaults = _read(least)
    for key, value in config.items():
        section = _Noting(value if isinstance(value, dict) else {})
        _read({**least, key: section if isinstance(value, dict) else value}, key)
        for name in value if section.asked else ():  # a few sections DeepSpeed passes on as they are
            _refuse_unread(f"deepspeed.{key}.{name}", name, section)
        _refuse_another_type(f"deepspeed.{key}", value, getattr(defaults, key, None))
    whole = _Noting({key: value for key, value in config.items() if key != "train_batch_size"})  # depends on the ranks
    _read(whole)
    for key in config:
        _refuse_unread(f"deepspeed.{key}", key, whole)
    _refuse_what_is_no_precision(config)


def _read(config: dict[str, Any], key: str | None = None) -> DeepSpeedConfig:
    """What DeepSpeed makes of a configuration; needs no process group.

    Args:
        key: the one that is at fault where DeepSpeed cannot use it.

    Raises:
        ConfigError: DeepSpeed cannot use it.
    """
    where = f"deepspeed.{key}" if key else "deepspeed"
    was_disabled, logger.disabled = logger.disabled, True  # it warns again when the engine starts
    try:
        return DeepSpeedConfig(config)
    except ValidationError as error:
        raise _first_mistake(where, error) from None
    except (TypeError, AttributeError) as error:  # DeepSpeed's code works with another type
        problem = f"{json.dumps(config[key] if key else config)[:100]} cannot stand ({error})"
        raise ConfigError(where, problem, SEE_DEEPSPEED) from None
    except (ValueError, LookupError, AssertionError, DeepSpeedConfigError) as error:
        raise ConfigError(where, f"DeepSpeed refuses it ({error})", SEE_DEEPSPEED) from None
    finally:
        logger.disabled = was_disabled


def _first_mistake(where: str, error: ValidationError) -> ConfigError:
    """One line for the first thing that pydantic found in a section."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    where = ".".join([where, *location])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input ")
    if first["type"] == "extra_forbidden":
        sections = {section.__name__: section for section in DeepSpeedConfigModel.__subclasses__()}
        if len(location) > 1 or error.title not in sections:
            return ConfigError(where, "unknown key", SEE_DEEPSPEED)
        known = [field.alias or name for name, field in sections[error.title].model_fields.items()]
        return ConfigError(where, "unknown key", nearest(location[0], known))
    if first["type"] in ("value_error", "assertion_error"):
        return ConfigError(where, message, SEE_DEEPSPEED)
    return ConfigError(where, f"{json.dumps(first['input'], default=str)} cannot stand", f"it {message}")


def _refuse_unread(where: str, key: str, noting: _Noting) -> None:
    if key not in noting.asked:
        raise ConfigError(where, "unknown key", nearest(key, noting.asked))


def _refuse_another_type(where: str, value: Any, default: Any) -> None:
    """DeepSpeed takes any text for true, also "false", and would calculate with a number in quotes."""
    if not isinstance(default, bool | int | float):
        return
    if not isinstance(value, bool | int | float) or isinstance(value, bool) is not isinstance(default, bool):
        wanted = "true or false" if isinstance(default, bool) else "a number"
        raise ConfigError(where, f"{json.dumps(value)} cannot stand", f"it should be {wanted}")


def _refuse_what_is_no_precision(config: dict[str, Any]) -> None:
    """A precision that DeepSpeed does not know, or that it would leave off in silence."""
    for key in ("bf16", "fp16"):
        if (config.get(key) or {}).get("enabled") == "auto":  # only transformers' Trainer puts a value in its place
            raise ConfigError(f"deepspeed.{key}.enabled", '"auto" cannot stand', "it should be true or false")
    for key in ("grad_accum_dtype", "param_dtype", "buffer_dtype"):
        if (name := config.get("data_types", {}).get(key)) is not None:
            try:
                DtypeEnum(name)
            except ValueError:
                where = f"deepspeed.data_types.{key}"
                raise ConfigError(
                    where, f"{json.dumps(name)} cannot stand", "it should be fp32, bf16 or fp16"
                ) from None


def _refuse_what_adamw_cannot_use(parameters: dict[str, Any], is_offloaded: bool) -> None:
    """Settings that the AdamW to be used does not have, and values that torch's refuses."""
    kind = torch.optim.AdamW if parameters.get("torch_adam") else DeepSpeedCPUAdam if is_offloaded else FusedAdam
    known = {*inspect.signature(kind).parameters, "torch_adam", "adam_w_mode"} - {
        "params",
        "model_params",
        "adamw_mode",
    }
    for key, value in parameters.items():
        where = f"deepspeed.optimizer.params.{key}"
        if key not in known:
            raise ConfigError(where, f"{kind.__name__} has no such setting", nearest(key, known))
        if key in ("betas", "eps"):
            try:
                torch.optim.AdamW([torch.zeros(1)], **{key: value})
            except (ValueError, TypeError, LookupError):
                problem = f"{json.dumps(value)} cannot stand"
                raise ConfigError(where, problem, "see ds_configs/ for how it is written") from None
