"""COMPARISON.json: which mixtures are compared, over which seeds, and how. docs/comparing.md has examples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from doge_ds.config import read_setting, write_setting
from doge_ds.config_mistakes import first_mistake
from doge_ds.config_sections import METHODS, Section
from doge_ds.errors import ConfigError, nearest
from doge_ds.json_files import read_json_object

_OF_ALL_SEEDS = "training.seed"
# Sections of a run configuration whose keys have defaults: what is left out would be taken from there, unnoticed.
_SECTIONS = ("data", "training", *METHODS)


class EvaluationConfig(Section):
    """How bases are measured: options of eval/run.py."""

    data: str | None = Field(default=None, description="Token store with the held-out text; by default the base's.")
    domains: list[str] | None = Field(default=None, min_length=1, description="Of the store; by default all.")
    suite: str | None = Field(default=None, description="A named set of few-shot tasks.")
    tasks: list[str] = Field(default_factory=list, description="Few-shot tasks by name.")
    num_fewshot: int = Field(default=5, ge=0, description="Solved examples before each question.")
    limit: float | None = Field(default=None, gt=0, description="Questions of each task, or below 1 that part.")
    data_root: str | None = Field(default=None, description="Folder of datasets that eval/prefetch.py has made.")

    @field_validator("limit")
    @classmethod
    def _is_a_part_or_a_number(cls, limit: float | None) -> float | None:
        if limit is not None and limit > 1 and limit != int(limit):
            raise ValueError(f"limit {limit} is neither a part, below 1, nor a whole number of questions")
        return limit


class MixtureEntry(Section):
    """One mixture: given (`mixture`) or learned by a proxy (`proxy`)."""

    mixture: str | None = Field(
        default=None, description="What train_base.py --mixture takes; paths from the comparison's file on."
    )
    proxy: dict[str, Any] | None = Field(default=None, description="Settings (--set) of the proxy that learns it.")
    base: dict[str, Any] = Field(default_factory=dict, description="Settings (--set) of its bases only.")
    against: str | None = Field(default=None, description="The mixture that its differences are to.")
    groups: list[str] | None = Field(default=None, description="Those of `groups` that it counts in; by default all.")
    reference_mixture: str = Field(default="uniform", description="DoReMi: what the reference model is trained on.")
    stages: int | None = Field(default=None, ge=1, description="Bases train on a schedule of so many parts.")
    has_base: bool = Field(default=True, description="false: only its weights are looked at.")

    @model_validator(mode="after")
    def _is_given_or_learned(self) -> Self:
        if (self.mixture is None) == (self.proxy is None):
            raise ValueError("it needs either mixture, which is given, or proxy, which learns one")
        for key in ("stages", "reference_mixture"):
            if self.proxy is None and key in self.model_fields_set:
                raise ValueError(f"{key} belongs to a mixture that a proxy learns")
        return self


class ComparisonConfig(Section):
    """All of COMPARISON.json."""

    proxy: str | None = Field(default=None, description="A proxy's run configuration, relative to this file.")
    base: str | None = Field(default=None, description="A base's, likewise; null: only proxies are compared.")
    proxy_settings: dict[str, Any] = Field(default_factory=dict, description="--set for all proxies.")
    base_settings: dict[str, Any] = Field(default_factory=dict, description="--set for all bases.")
    seeds: list[int] = Field(default=[0], min_length=1, description="training.seed of proxies and bases alike.")
    against: str | None = Field(default=None, description="The mixture that differences are to; default: the first.")
    mixtures: dict[str, MixtureEntry] = Field(min_length=1, description="By name, in the order of the report.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    groups: dict[str, list[str]] = Field(default_factory=dict, description="Domains to average over, by name.")

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError(f"{seeds} are no distinct numbers from 0 on")
        return seeds

    @model_validator(mode="after")
    def _what_is_needed_is_there(self) -> Self:
        learned = [name for name, entry in self.mixtures.items() if entry.proxy is not None]
        if learned and self.proxy is None:
            raise ValueError(f"{learned[0]!r} is learned, and there is no proxy to learn it")
        if self.proxy is None and self.base is None:
            raise ValueError("it names neither a proxy nor a base")
        for name, domains in self.groups.items():
            if not domains or len(set(domains)) != len(domains):
                raise ValueError(f"the group {name!r} names no domain, or one twice")
        return self

    def against_of(self, name: str) -> str:
        """The mixture that the differences of `name` are to."""
        return self.mixtures[name].against or self.against or next(iter(self.mixtures))

    def counts_in(self, name: str, group: str) -> bool:
        """Whether a group's averages and answers are about this mixture."""
        groups = self.mixtures[name].groups
        return groups is None or group in groups

    def has_base(self, name: str) -> bool:
        """Whether bases are trained on this mixture."""
        return self.base is not None and self.mixtures[name].has_base


def load_comparison(path: Path, settings: Sequence[str] = ()) -> ComparisonConfig:
    """Read one comparison.

    Args:
        path: COMPARISON.json.
        settings: `key=value` overrides, like seeds=[0] or proxy_settings.training.steps=100.

    Raises:
        ConfigError: no JSON, an unknown key (with the nearest valid one), a wrong type or value, a name of no mixture.
    """
    values = read_json_object(path)
    for setting in settings:
        _override(values, setting)
    entries = values.get("mixtures")
    if isinstance(entries, dict):
        found = {
            name: _validated(
                MixtureEntry, {"mixture": entry} if isinstance(entry, str) else entry, f"mixtures.{name}", path
            )
            for name, entry in entries.items()
        }
        values = {**values, "mixtures": found}
    config = _validated(ComparisonConfig, values, "", path)
    _check_names(config, path)
    _check_settings(config, path)
    return config


def as_settings(*layers: Mapping[str, Any]) -> list[str]:
    """Objects of dotted keys as `--set` has them; of a key in several layers the last wins, as there."""
    return [f"{key}={json.dumps(value)}" for layer in layers for key, value in layer.items()]


def _check_names(config: ComparisonConfig, path: Path) -> None:
    """Raises ConfigError where a mixture is compared with one that is not there or has no base, or counts in a group
    that is not there."""
    for where, name in [("against", config.against), *_againsts(config)]:
        if name is None:
            continue
        if name not in config.mixtures:
            raise ConfigError(f"{path}: {where}", f"{name!r} is no mixture here", nearest(name, config.mixtures))
    for name in config.mixtures:
        other = config.against_of(name)
        if config.has_base(name) and not config.has_base(other):
            problem = f"{name!r} is compared with {other!r}, which has no base"
            raise ConfigError(f"{path}: mixtures.{other}.has_base", problem, "let it have one, or name another against")
        groups = config.groups or {"all": []}
        if missing := [group for group in config.mixtures[name].groups or () if group not in groups]:
            raise ConfigError(
                f"{path}: mixtures.{name}.groups", f"{missing[0]!r} is no group here", nearest(missing[0], groups)
            )


def _check_settings(config: ComparisonConfig, path: Path) -> None:
    """Raises ConfigError where settings set the seed or a whole section."""
    layers = {"proxy_settings": config.proxy_settings, "base_settings": config.base_settings}
    for name, entry in config.mixtures.items():
        layers |= {f"mixtures.{name}.proxy": entry.proxy or {}, f"mixtures.{name}.base": entry.base}
    for where, layer in layers.items():
        if _OF_ALL_SEEDS in layer:
            raise ConfigError(f"{path}: {where}", f"sets {_OF_ALL_SEEDS}", "name all seeds in `seeds`")
        if section := next((key for key in _SECTIONS if key in layer), None):
            problem = f"{section} would replace all of the section that the file has"
            raise ConfigError(f"{path}: {where}", problem, f"write its keys with dots, like {section}.KEY")


def _againsts(config: ComparisonConfig) -> list[tuple[str, str | None]]:
    return [(f"mixtures.{name}.against", entry.against) for name, entry in config.mixtures.items()]


def _override(values: dict[str, Any], setting: str) -> None:
    """Write one `key=value` into the raw values."""
    keys, value = read_setting(setting, "seeds=[0] or base_settings.training.steps=100")
    before: list[str] = []
    mixtures = values.get("mixtures")
    if keys.startswith("mixtures.") and isinstance(mixtures, dict):
        name = _mixture_name(keys.removeprefix("mixtures."), list(mixtures), setting)
        before, keys = ["mixtures", name], keys.removeprefix(f"mixtures.{name}").removeprefix(".")
    section, _, key = keys.partition(".")
    if key and section in (("proxy", "base") if before else ("proxy_settings", "base_settings")):
        after = [section, key]  # one key of a run configuration, dots and all
    else:
        after = keys.split(".") if keys else []
    write_setting(values, setting, [*before, *after], value)


def _mixture_name(keys: str, names: Sequence[str], setting: str) -> str:
    """The mixture that dotted keys begin with; a name may have dots itself. Raises ConfigError where none does."""
    if found := [name for name in names if f"{keys}.".startswith(f"{name}.")]:
        return max(found, key=len)
    name = keys.split(".")[0]
    raise ConfigError(f"--set {setting}", f"{name!r} is no mixture here", nearest(name, names))


Kind = TypeVar("Kind", bound=BaseModel)


def _validated(kind: type[Kind], values: Any, section: str, path: Path) -> Kind:
    """`values` as `kind`. Raises ConfigError for the first mistake."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise first_mistake(kind, str(path), error, section) from None
