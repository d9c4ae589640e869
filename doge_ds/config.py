"""Run configuration: one strict JSON file per run; every key typed, ranged and explained.

The run configuration owns batch sizes, learning rate, schedule, clipping and steps. The DeepSpeed configuration that it
points to owns precision, ZeRO, communication, offload and monitors; `training/deepspeed_config.py` joins the two.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import to_json

from doge_ds.config_mistakes import first_mistake
from doge_ds.config_sections import (
    METHODS,
    REFERENCE_METHODS,
    BaseTrainingConfig,
    DataConfig,
    DogeConfig,
    DoremiConfig,
    MethodOptions,
    ProxyTrainingConfig,
    Section,
)
from doge_ds.errors import ConfigError
from doge_ds.json_files import check_characters, parse_json, read_json_object


class RunConfig(Section):
    """What both programs read."""

    model: dict[str, Any] = Field(
        description="What transformers' AutoConfig.for_model takes: model_type and its settings; or `pretrained`, a "
        "Hugging Face folder or name to start from, and settings that it shall have instead of its own. "
        "`attn_implementation` as transformers has it. vocab_size comes from the store; dropout is 0 unless set."
    )
    data: DataConfig
    deepspeed: dict[str, Any] = Field(description="DeepSpeed's configuration, or its path relative to this file.")


class ProxyConfig(RunConfig):
    """ds_configs/runs/*.json of `train_proxy.py`."""

    training: ProxyTrainingConfig
    method: Literal["doge", "doremi"] = Field(
        default="doge", description="How the weights are learned; the section of the same name says more."
    )
    doge: DogeConfig = Field(default_factory=DogeConfig)
    doremi: DoremiConfig = Field(default_factory=DoremiConfig)

    @property
    def options(self) -> MethodOptions:
        """The method's own section."""
        found: MethodOptions = getattr(self, self.method)
        return found

    @property
    def target(self) -> str | list[str]:
        """Whose gradients are measured beside those of the train domains; DoReMi knows no targets."""
        return self.options.target

    @property
    def needs_reference(self) -> bool:
        """Whether the method compares losses with those of a reference model."""
        return self.method in REFERENCE_METHODS

    @property
    def reference(self) -> str | None:
        """The reference model that the method's section names; None too for a method that needs none."""
        return getattr(self.options, "reference", None)

    @model_validator(mode="after")
    def _only_the_methods_section_is_set(self) -> Self:
        for name, section in METHODS.items():
            if name != self.method and getattr(self, name) != section():
                raise ValueError(f"method is {self.method!r}, which does not read the section {name!r}")
        return self

    @model_validator(mode="after")
    def _selection_leaves_steps(self) -> Self:
        if self.doge.selection and self.doge.selection.steps >= self.training.steps:
            raise ValueError(f"selection.steps {self.doge.selection.steps} leaves none of {self.training.steps} steps")
        return self


class MixtureStage(Section):
    """One stage of a schedule of mixtures; it holds until the next one starts."""

    from_step: int = Field(ge=0, description="Steps done before the stage; 0 in the first, and increasing.")
    mixture: str | dict[str, float] = Field(
        description="A mixture.json, `uniform`, `natural` or a published name; or an object of weights by domain."
    )


class BaseConfig(RunConfig):
    """ds_configs/runs/*.json of `train_base.py`."""

    training: BaseTrainingConfig
    mixture: str | list[MixtureStage] | None = Field(
        default=None, description="What `--mixture` takes, paths from this file on; or stages. The option wins."
    )

    @field_validator("mixture", mode="before")
    @classmethod
    def _read_stages(cls, value: Any) -> Any:
        """Stage by stage, because what a choice of types says of a list is no message for a user."""
        if not isinstance(value, list):
            return value
        try:
            return [MixtureStage.model_validate(stage) for stage in value]
        except ValidationError as error:
            raise ValueError(stage_mistake(error)) from None

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> Self:
        if isinstance(self.mixture, list):
            check_stages([stage.from_step for stage in self.mixture], self.training.steps)
        return self


def stage_mistake(error: ValidationError) -> str:
    """What is wrong with one stage, in words."""
    deepest = max(error.errors(include_url=False), key=lambda mistake: len(mistake["loc"]))
    key = ".".join(str(part) for part in deepest["loc"] if part not in ("str", "dict[str,float]"))
    return f"a stage's {key} cannot stand ({deepest['msg']})"


def check_stages(starts: Sequence[int], steps: int) -> None:
    """Raises ValueError where these are no first steps of the stages of a run of `steps` steps."""
    if list(starts[:1]) != [0] or list(starts) != sorted(set(starts)):
        raise ValueError(f"mixture has stages from the steps {list(starts)} on, not from 0 and then from later ones")
    if starts[-1] >= steps:
        raise ValueError(f"mixture has a stage from step {starts[-1]} on, which is not below training.steps {steps}")


Config = TypeVar("Config", bound=RunConfig)


def load_config(kind: type[Config], path: Path, settings: Sequence[str] = ()) -> Config:
    """Read one run configuration.

    Args:
        kind: ProxyConfig or BaseConfig.
        path: the JSON file.
        settings: `section.key=value` overrides (`--set`); a value is JSON, or else a string.

    Raises:
        ConfigError: no such file, no JSON (with line and column), an unknown key (with the nearest valid one), a wrong
            type, or a value out of range.
    """
    values = read_json_object(path)
    for setting in settings:
        if setting.startswith("deepspeed."):
            _read_deepspeed(values, path)
        _override(values, setting)
    _read_deepspeed(values, path)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise first_mistake(kind, str(path), error, remedy="change one of them") from None


def _read_deepspeed(values: dict[str, Any], path: Path) -> None:
    """Put the DeepSpeed file's contents where its path stands."""
    if isinstance(values.get("deepspeed"), str):
        try:
            values["deepspeed"] = read_json_object(path.parent / values["deepspeed"])
        except ConfigError as error:
            where, problem, remedy = error.args
            raise ConfigError(f"{path}: deepspeed: {where}", problem, remedy) from None


def for_publication(values: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved run configuration without the sections of the DeepSpeed file that may hold keys to accounts."""
    deepspeed = {name: value for name, value in values["deepspeed"].items() if name not in ("wandb", "comet")}
    return {**values, "deepspeed": deepspeed}


def config_hash(config: RunConfig | Mapping[str, Any]) -> str:
    """16 hex digits of a resolved configuration, or of what config.json holds of one.

    A version with further keys reads defaults into an older file; the hash of the file's own values stays the same.
    """
    return hashlib.sha256(to_json(config, inf_nan_mode="null")).hexdigest()[:16]


def _override(values: dict[str, Any], setting: str) -> None:
    """Write one `section.key=value` into the raw values."""
    keys, value = read_setting(setting, "training.steps=100")
    write_setting(values, setting, keys.split("."), value)


def read_setting(setting: str, example: str) -> tuple[str, Any]:
    """Dotted keys and value of one `--set`; the value is JSON, or else a string. Raises ConfigError for none."""
    keys, equals, text = setting.partition("=")
    if not equals or not all(keys.split(".")):
        raise ConfigError(f"--set {setting}", "is no assignment", f"write it like {example}")
    try:
        check_characters(setting)
    except ValueError as error:
        raise ConfigError(f"--set {setting}", str(error), "write whole characters") from None
    try:
        return keys, parse_json(text)
    except ValueError:
        return keys, text


def write_setting(values: dict[str, Any], setting: str, keys: Sequence[str], value: Any) -> None:
    """Write the value of one `--set` into raw values, making sections on the way. Raises ConfigError where one is none.

    A section that is null is one that nothing was said of.
    """
    *sections, last = keys
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}", f"{section} is no section", "name a section and a key")
    values[last] = value
