"""What a run left in its directory, read into dataclasses; docs/formats.md says what the files hold."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from doge_ds.config import BaseConfig, ProxyConfig, config_hash, for_publication, load_config
from doge_ds.errors import RunError
from doge_ds.json_files import read_json_object
from doge_ds.mixture import Mixture, read_mixture
from doge_ds.reporting.metrics import Metrics, read_metrics

# A base run's mixture goes through JSON and one division by its sum on its way from the proxy's file.
SAME_WEIGHT = 1e-9


class FactsStage(BaseModel):
    """A stage of run.json's `schedule`: from so many steps done on, these weights."""

    from_step: int = Field(ge=0)
    mixture: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)


class FactsBatch(BaseModel):
    """A stage of run.json's `batches`: from so many steps done on, a step has this many sequences (of each row)."""

    from_step: int = Field(ge=0)
    sequences: int = Field(ge=1)


class Facts(BaseModel):
    """run.json: what makes a run what it is beside its configuration. Facts that later versions add are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    program: Literal["train_proxy", "train_base"]
    ranks: int
    store: str
    tokenizer_sha256: str
    mixture: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    schedule: list[FactsStage] = Field(default_factory=list)
    batches: list[FactsBatch] = Field(default_factory=list)

    @field_validator("batches")
    @classmethod
    def _check_batches(cls, batches: list[FactsBatch]) -> list[FactsBatch]:
        starts = [stage.from_step for stage in batches]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError(f"its stages are from the steps {starts} on, not from 0 and then from later ones")
        return batches

    @property
    def stages(self) -> list[tuple[int, dict[str, float]]]:
        """What a base trained on, from how many steps done on; one stage where the mixture never changed."""
        found = [(stage.from_step, stage.mixture) for stage in self.schedule]
        return found or ([(0, self.mixture)] if self.mixture else [])


def _none_unless_finite(value: Any) -> Any:
    """None for NaN and infinities, which some write into JSON, and for whole numbers that no float can hold."""
    return None if isinstance(value, int | float) and not abs(value) <= sys.float_info.max else value


# JSON has no word for NaN and infinities: they are null, and text that spells them is damage.
NoneUnlessFinite = BeforeValidator(_none_unless_finite)
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, NoneUnlessFinite]


class DomainResult(BaseModel):
    """One domain in results.json; a perplexity above the range of a float is None, of a diverged model all three."""

    model_config = ConfigDict(frozen=True)

    log_perplexity: Number
    perplexity: Number
    bits_per_byte: Number
    tokens: int


class Selection(BaseModel):
    """selection.json: tensors of the proxy that scores were computed from, and why."""

    model_config = ConfigDict(frozen=True)

    measured_steps: int
    selected: list[str]
    share_of_parameters: float
    cancellation_effect: dict[str, Number]


class PerplexityResult(BaseModel):
    """`perplexity` in results.json."""

    model_config = ConfigDict(frozen=True)

    domains: dict[str, DomainResult] = Field(min_length=1)
    average_log_perplexity: Number
    average_perplexity: Number
    geometric_perplexity: Number


class TaskNumbers(BaseModel):
    """One task in results.json."""

    model_config = ConfigDict(frozen=True)

    acc: Number = None
    acc_stderr: Number = None


class FewShot(BaseModel):
    """`few_shot` in results.json: how tasks were asked."""

    model_config = ConfigDict(frozen=True)

    num_fewshot: int
    data_root: str | None = None


class StoreReference(BaseModel):
    """`data` in results.json: the store that was measured on."""

    model_config = ConfigDict(frozen=True)

    path: str
    fingerprint: str


class Results(BaseModel):
    """results.json, as eval/run.py writes it: with a store, with tasks, or with both."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1]
    data: StoreReference | None = None
    sequence_length: int | None = None
    perplexity: PerplexityResult | None = None
    few_shot: FewShot | None = None
    tasks: dict[str, TaskNumbers] | None = None
    mean_accuracy: Number = None

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if self.perplexity is None and self.tasks is None:
            raise ValueError("neither perplexity nor tasks")
        if self.perplexity is not None and self.data is None:
            raise ValueError("perplexity without data")
        return self


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        path: as the user named it.
        name: as many of its last parts as tell it from the other runs.
        facts: run.json.
        config: config.json, with today's defaults for keys that it lacks.
        config_values: config.json as it stands, but for what may hold keys to accounts.
        config_sha256: 16 hex digits of config.json's values, what may hold keys included; a mixture records the same.
        metrics: metrics.jsonl; no lines where nothing has been logged yet.
        mixture: of a proxy: mixture.json, or of an unfinished one the running mean in its last line; None where
            there is none yet. Of a base: what it was trained on.
        is_finished: its result is there.
        selection: of a finished proxy that scored with selected tensors.
        results, results_path: of a base: its held-out perplexities and their file, where they were measured.
    """

    path: Path
    name: str
    facts: Facts
    config: ProxyConfig | BaseConfig
    config_values: dict[str, Any]
    config_sha256: str
    metrics: Metrics
    mixture: Mixture | None
    is_finished: bool
    selection: Selection | None = None
    results: Results | None = None
    results_path: Path | None = None

    @property
    def is_proxy(self) -> bool:
        return self.facts.program == "train_proxy"

    @property
    def target_domains(self) -> list[str]:
        """Domains that a proxy's weights are aimed at and that were named."""
        if isinstance(self.config, ProxyConfig) and isinstance(self.config.target, list):
            return self.config.target
        return []

    @property
    def train_domains(self) -> list[str]:
        """Domains that have a weight."""
        return list(self.mixture.domains) if self.mixture else self.metrics.names("weight/")


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read run directories that belong together.

    Raises:
        RunError: a path is no run directory or named twice, a file is damaged (file and line), or the runs or their
            perplexities are of different stores or tokenizers.
        ConfigError, MixtureError: config.json, or mixture.json, cannot be read.
    """
    runs = [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    for key, word in (("tokenizer_sha256", "tokenizer"), ("store", "token store")):
        values = [(str(run.path), str(getattr(run.facts, key))) for run in runs]
        _refuse_different(values, f"{word} fingerprint", f"report runs on one {word} together")
    measured = [
        (str(run.results_path), run.results.data.fingerprint) for run in runs if run.results and run.results.data
    ]
    _refuse_different(measured, "fingerprint of the store measured on", "measure all on one --data with eval/run.py")
    return runs


def proxy_with_mixture(mixture: Mixture, runs: Sequence[RunRecord]) -> RunRecord | None:
    """The finished proxy among `runs` whose result `mixture` is, where there is one."""
    for run in runs:
        if run.is_proxy and run.is_finished and run.mixture and _is_same(run.mixture, mixture):
            return run
    return None


def is_uniform(mixture: Mixture) -> bool:
    """Whether all weights are the same."""
    return _is_same(mixture, Mixture.uniform(list(mixture.domains)))


def _is_same(one: Mixture, other: Mixture) -> bool:
    return set(one.domains) == set(other.domains) and all(
        abs(weight - other.domains[name]) <= SAME_WEIGHT for name, weight in one.domains.items()
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart. Raises RunError for a run named twice."""
    absolute = [path.resolve() for path in paths]
    for number, path in enumerate(absolute):
        if path in absolute[:number]:
            raise RunError(str(paths[number]), "is named twice", "name each run once")
    for length in range(1, max(len(path.parts) for path in absolute) + 1):
        names = ["/".join(path.parts[-length:]) for path in absolute]
        if len(set(names)) == len(names):
            break
    return names


def _read_run(path: Path, name: str) -> RunRecord:
    if not os.path.isdir(path):  # Path.is_dir raises OSError for a long name
        problem = "is a file, not a run directory" if os.path.exists(path) else "is not there"
        raise RunError(str(path), problem, "name the --output of a proxy or base run")
    missing = [file for file in ("run.json", "config.json") if not (path / file).is_file()]
    if missing:
        remedy = "name the --output of train_proxy.py or train_base.py"
        raise RunError(str(path), f"is no run directory: it has no {' and no '.join(missing)}", remedy)
    facts, metrics = read_facts(path), read_metrics(path / "metrics.jsonl")
    kind: type[ProxyConfig | BaseConfig] = ProxyConfig if facts.program == "train_proxy" else BaseConfig
    values = read_json_object(path / "config.json")
    if isinstance(values.get("deepspeed"), str):  # the page would show a file that somebody else has chosen
        where, problem = f"{path / 'config.json'}: deepspeed", f"is a path, {values['deepspeed']!r}"
        raise RunError(where, problem, "restore the file that the run wrote, which has the settings themselves")
    config = load_config(kind, path / "config.json")
    mixture, found = None, None
    if facts.program == "train_proxy":
        is_finished = (path / "mixture.json").exists()
        mixture = read_mixture(path / "mixture.json") if is_finished else _running_mean(metrics)
    elif facts.mixture:
        mixture, is_finished = Mixture(domains=facts.mixture), (path / "hf").is_dir()
        found = next((file for file in (path / "results.json", path / "hf/results.json") if file.exists()), None)
    else:
        raise RunError(f"{path / 'run.json'}: mixture", "is missing", "name a run of train_base.py of this version")
    results, public = validate_file(Results, found) if found else None, for_publication(values)
    sha256, chosen = config_hash(values), path / "selection.json"
    selection = validate_file(Selection, chosen) if chosen.exists() else None
    return RunRecord(
        path, name, facts, config, public, sha256, metrics, mixture, is_finished, selection, results, found
    )


def read_facts(run: Path) -> Facts:
    """RUN/run.json. Raises ConfigError where it is no JSON object, RunError where it has another layout."""
    return validate_file(Facts, run / "run.json")


def _running_mean(metrics: Metrics) -> Mixture | None:
    """The mean weights of the last logged step that has them."""
    weights = {name: metrics.last(f"mean_weight/{name}") for name in metrics.names("mean_weight/")}
    known = {name: weight for name, weight in weights.items() if weight is not None}
    return Mixture(domains=known, kind="mean") if known else None


Model = TypeVar("Model", bound=BaseModel)


def validate_file(kind: type[Model], path: Path) -> Model:
    """One JSON file as `kind`. Raises ConfigError (no JSON: line and column) or RunError (another layout: the key)."""
    values: dict[str, Any] = read_json_object(path, any_number=True)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"{path}: {key}" if key else str(path)
        raise RunError(where, f"is damaged ({first['msg']})", "write the file again") from None


def _refuse_different(values: Sequence[tuple[str, str]], what: str, remedy: str) -> None:
    """Raises RunError where (file or run, fingerprint) pairs have more than one fingerprint."""
    for where, value in values[1:]:
        first_where, first = values[0]
        if value != first:
            problem = f"its {what} is {value[:16]}, that of {first_where} is {first[:16]}"
            raise RunError(where, problem, remedy)
