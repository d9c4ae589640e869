"""Run configuration: one strict JSON file per run; every key typed, ranged and explained.

The run configuration owns batch sizes, learning rate, schedule, clipping and steps. The DeepSpeed configuration that it
points to owns precision, ZeRO, communication, offload and monitors; `training/deepspeed_config.py` joins the two.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import to_json

from doge_ds.errors import ConfigError, nearest
from doge_ds.json_files import check_characters, parse_json, read_json_object


class _Section(BaseModel):
    """Unknown keys are refused; a number in quotes is no number; a whole number will do where a fraction may stand."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class DataConfig(_Section):
    """Which tokens to train on."""

    path: str = Field(description="Token store, as `doge-ds prepare` makes it; relative to the working directory.")
    sequence_length: int = Field(ge=2, description="Tokens in a training sequence; its first token is context only.")
    train_domains: list[str] | None = Field(
        default=None, min_length=1, description="Domains to train on; by default all of the store but the targets."
    )
    max_epochs: float = Field(default=4.0, gt=0, description="Refuse a run that reads any domain more often than this.")

    @model_validator(mode="after")
    def _train_domains_are_distinct(self) -> Self:
        if self.train_domains and len(set(self.train_domains)) != len(self.train_domains):
            raise ValueError(f"train_domains {self.train_domains} names a domain twice")
        return self


class TrainingConfig(_Section):
    """What both stages have in common."""

    steps: int = Field(ge=1, description="Optimizer steps.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Sequences of one forward pass on one rank; by default all that a rank gets."
    )
    learning_rate: float = Field(gt=0, description="Peak of the schedule cosine_with_min_lr.")
    min_learning_rate: float = Field(default=0.0, ge=0, description="Where the cosine ends, at the last step.")
    warmup_steps: int = Field(default=0, ge=0, description="Linear warm-up from 0.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's, on matrices; norms and biases have none.")
    decay_embeddings: bool = Field(default=True, description="Whether embeddings have weight decay as well.")
    gradient_clipping: float = Field(default=1.0, ge=0, description="Largest norm of the model's gradient; 0: off.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of initialisation, sample order and dropout.")
    checkpoint_every: int = Field(default=1000, ge=1, description="Steps between checkpoints; the last is saved.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept.")
    keep_universal: bool = Field(default=False, description="Keep what was converted for another number of ranks.")
    on_failed_save: Literal["continue", "stop"] = Field(
        default="continue", description="Where a checkpoint cannot be written (a full disk): train on, or end."
    )
    stop_after_bad_steps: int = Field(
        default=10, ge=1, description="End after so many steps in a row whose loss or gradient is NaN or infinite."
    )
    rank_timeout: float = Field(
        default=1800.0, ge=1, description="Seconds without a step after which a rank that hangs ends the run."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between lines of metrics.jsonl, the last one too.")
    eval_every: int | None = Field(default=None, ge=1, description="Steps between held-out evaluations; null: none.")
    eval_windows: int = Field(default=64, ge=1, description="Held-out windows of each domain in one evaluation.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for activations, a third more time.")
    compile: bool = Field(default=False, description="torch.compile, through DeepSpeed's engine.compile().")
    peak_tflops: float | None = Field(
        default=None, gt=0, description="TFLOP/s of one device in this precision, by its data sheet; for the MFU."
    )

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.warmup_steps >= self.steps and self.warmup_steps > 0:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves none of {self.steps} steps to train")
        return self


class ProxyTrainingConfig(TrainingConfig):
    """The proxy sees the same number of sequences of every domain in every step."""

    sequences_per_domain: int = Field(ge=1, description="Sequences of each domain in one step, over all ranks.")


class BaseTrainingConfig(TrainingConfig):
    """The base model sees batches drawn from the mixture."""

    global_batch_size: int = Field(ge=1, description="Sequences in one step, over all ranks.")
    export_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the Hugging Face folder that the run ends with."
    )


Normalization = Literal["none", "mean_gradient_norm", "cosine"]

# What a preset sets, unless the run configuration says otherwise. `official` is what the authors' code does: every
# domain's gradient clipped to the Trainer's max_grad_norm of 1, division by the mean norm, scores between 0 and 5.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"clip_domain_gradients": None, "normalize": "none", "clip": None},
    "official": {"clip_domain_gradients": 1.0, "normalize": "mean_gradient_norm", "clip": (0.0, 5.0)},
}


class SelectionConfig(_Section):
    """Scores from some of the model's tensors only, chosen by their cancellation effect (arXiv 2310.15393v1)."""

    steps: int = Field(ge=1, description="First steps of the run, plain training, in which the effect is measured.")
    tensors: int = Field(
        description="How many to keep: those with the smallest cancellation effect; negative: with the largest."
    )

    @model_validator(mode="after")
    def _some_are_kept(self) -> Self:
        if self.tensors == 0:
            raise ValueError("tensors 0 keeps none")
        return self


class DogeConfig(_Section):
    """How the proxy learns the domain weights (arXiv 2310.15393); `reweight/doge.py` has the mathematics."""

    target: Literal["all", "others", "mix"] | list[str] = Field(
        default="mix",
        description="Whose loss the weights shall lower: all train domains, all others than the one scored, "
        "held-out sequences of an even mix of them, or a list of domains.",
    )
    preset: Literal["official", "paper"] = Field(
        default="official", description="Scores as the authors' code has them, or as the paper writes them."
    )
    mu: float = Field(default=0.01, gt=0, description="Strength of the Bregman term: smaller moves weights faster.")
    step_size: float | None = Field(
        default=None, gt=0, description="Fixed step of the weights; by default the learning rate of the step."
    )
    divergence: Literal["kl", "euclidean"] = Field(default="kl", description="Mirror map: softmax, or projection.")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the uniform mixture mixed in every step.")
    clip_domain_gradients: float | None = Field(
        default=None, gt=0, description="Largest norm of one domain's gradient; null: off. Set by the preset."
    )
    normalize: Normalization = Field(default="none", description="What scores are divided by. Set by the preset.")
    clip: tuple[float, float] | None = Field(
        default=None, strict=False, description="Smallest and largest score; null: off. Set by the preset."
    )
    update_every: int = Field(
        default=1, ge=1, description="Steps between updates of the weights; the others train on the weighted loss."
    )
    domains_per_step: int | None = Field(
        default=None, ge=1, description="Train domains in one step, a fair subset that changes; by default all."
    )
    absent_score_decay: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="A domain absent from a step has its last score, drawn towards the mean of the step's scores by "
        "this factor for each update since; 1: held, 0: the mean.",
    )
    selection: SelectionConfig | None = Field(
        default=None, description='Score with some tensors only, as {"steps": 1000, "tensors": 10}; null: with all.'
    )
    gradient_store: Literal["device", "cpu"] = Field(
        default="device", description="Where the rows of domain gradients are kept; cpu: pinned memory of the host."
    )
    gradient_dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Precision of the rows; by default that in which DeepSpeed accumulates gradients."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(str(values.get("preset", "official")), {}), **values}

    @model_validator(mode="after")
    def _names_are_distinct_and_clip_is_a_range(self) -> Self:
        if isinstance(self.target, list) and (not self.target or len(set(self.target)) != len(self.target)):
            raise ValueError(f"target {self.target} must name at least one domain, and none twice")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip {list(self.clip)} is no range")
        if self.domains_per_step == 1 and self.target in ("all", "others"):
            raise ValueError(f"domains_per_step 1 leaves no pairs for target {self.target!r}, which compares domains")
        return self


class RunConfig(_Section):
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
    doge: DogeConfig = Field(default_factory=DogeConfig)

    @model_validator(mode="after")
    def _selection_leaves_steps(self) -> Self:
        if self.doge.selection and self.doge.selection.steps >= self.training.steps:
            raise ValueError(f"selection.steps {self.doge.selection.steps} leaves none of {self.training.steps} steps")
        return self


class MixtureStage(_Section):
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
        raise _first_mistake(kind, path, error) from None


def _read_deepspeed(values: dict[str, Any], path: Path) -> None:
    """Put the DeepSpeed file's contents where its path stands."""
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = read_json_object(path.parent / values["deepspeed"])


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
    keys, equals, text = setting.partition("=")
    if not equals or not all(keys.split(".")):
        raise ConfigError(f"--set {setting}", "is no assignment", "write it like training.steps=100")
    try:
        check_characters(setting)
    except ValueError as error:
        raise ConfigError(f"--set {setting}", str(error), "write whole characters") from None
    try:
        value = parse_json(text)
    except ValueError:
        value = text
    *sections, last = keys.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}", f"{section} is no section", "name a section and a key")
    values[last] = value


def _first_mistake(kind: type[BaseModel], path: Path, error: ValidationError) -> ConfigError:
    """One line for the first thing that pydantic found."""
    # A misspelt key is also a missing one; the misspelling is what the user wants to see.
    first = min(error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"{path}: {'.'.join(location)}", "unknown key", nearest(location[-1], _keys(kind, location[:-1]))
        )
    # Inside a choice of types pydantic adds the name of the type that it tried; a user knows sections and keys only.
    known = next((n for n in range(len(location)) if location[n] not in _keys(kind, location[:n])), len(location))
    key = ".".join(location[:known]) or "the file"
    if first["type"] == "missing":
        return ConfigError(f"{path}: {key}", "is missing", "add it")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "value_error":
        return ConfigError(f"{path}: {key}", message, "change one of them")
    return ConfigError(f"{path}: {key}", f"{json.dumps(first['input'], default=str)} cannot stand", f"it {message}")


def _keys(kind: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """Valid keys of a section."""
    for section in sections:
        annotation = kind.model_fields[section].annotation if section in kind.model_fields else None
        choices = [choice for choice in (annotation, *get_args(annotation)) if isinstance(choice, type)]
        inner = next((choice for choice in choices if issubclass(choice, BaseModel)), None)
        if inner is None:
            return []
        kind = inner
    return list(kind.model_fields)
