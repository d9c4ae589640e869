"""summary.json, what came of one comparison of mixtures; docs/formats.md says what the file holds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from doge_ds.errors import RunError
from doge_ds.reporting.run_files import NoneUnlessFinite, Number, validate_file

# A weight that was NaN when it was logged is null.
Weight = Annotated[Annotated[float, Field(ge=0, le=1 + 1e-6)] | None, NoneUnlessFinite]
Cosine = Annotated[Annotated[float, Field(ge=-1 - 1e-6, le=1 + 1e-6)] | None, NoneUnlessFinite]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Estimate(_Part):
    """One number of each seed, their mean, and the 95% interval of the mean; no interval with one seed."""

    by_seed: dict[int, Number]
    mean: Number
    low: Number = None
    high: Number = None

    @model_validator(mode="after")
    def _has_an_interval_or_none(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval with one end")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low is above high")
        return self

    @property
    def seeds(self) -> int:
        """Seeds that have a number."""
        return sum(value is not None for value in self.by_seed.values())

    @property
    def range(self) -> tuple[float, float] | None:
        """Smallest and largest over the seeds."""
        known = [value for value in self.by_seed.values() if value is not None]
        return (min(known), max(known)) if known else None

    @property
    def side(self) -> int | None:
        """-1 where the interval lies below 0, 1 where it lies above, 0 where it reaches both; None without one."""
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)


def have_the_same_seeds(estimates: Iterable[Estimate]) -> bool:
    """Whether their means are of the same seeds. A seed that makes all models better would else choose the best."""
    return len({frozenset(estimate.by_seed) for estimate in estimates}) <= 1


class Differences(_Part):
    """This mixture less the one that it is compared with, seed by seed, of each domain and each group's average."""

    domains: dict[str, Estimate]
    groups: dict[str, Estimate]


class WorstDomain(_Part):
    """The domain with the highest log-perplexity, and that with the largest difference."""

    name: str
    log_perplexity: Estimate
    difference_name: str | None = None
    difference: Estimate | None = None


class Cost(_Part):
    """Means over seeds; operations are None where they cannot be counted."""

    flops: Number = None
    seconds: Number = None
    tokens: Number = None


class Costs(_Part):
    """Of the stages that a mixture needs."""

    reference: Cost | None = None
    proxy: Cost | None = None
    base: Cost | None = None
    total: Cost | None = None


class Stability(_Part):
    """Total variation distances of mean weights: at half of the proxy's steps to its end, and between seeds."""

    half_to_end: Estimate
    across_seeds: Number = None


class Cosines(_Part):
    """Mean cosine between the gradients of each row and each column."""

    rows: list[str] = Field(min_length=1)
    columns: list[str] = Field(min_length=1)
    values: list[list[Cosine]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.values) != len(self.rows) or any(len(line) != len(self.columns) for line in self.values):
            raise ValueError(f"values is no table of {len(self.rows)} rows and {len(self.columns)} columns")
        for names in (self.rows, self.columns):
            if len(set(names)) < len(names):
                raise ValueError("a row or a column is named twice")
        return self


class Trajectory(_Part):
    """Weights at some steps of one seed's proxy, the first that has run."""

    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    mean_weight: dict[str, list[Weight]]
    weight: dict[str, list[Weight]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(after <= before for before, after in pairwise(self.steps)):
            raise ValueError("steps do not rise")
        for name, values in [*self.weight.items(), *self.mean_weight.items()]:
            if len(values) != len(self.steps):
                raise ValueError(f"{name} has {len(values)} weights at {len(self.steps)} steps")
        return self


class Places(_Part):
    """Where the runs of one seed lie."""

    reference: str | None = None
    proxy: str | None = None
    base: str | None = None
    eval: str | None = None


class MixtureSummary(_Part):
    """One mixture. What was not measured, or is not finished, is None."""

    against: str
    method: str | None = None
    mixture: str | None = None
    weights: dict[str, Estimate] = Field(default_factory=dict)
    last_weights: dict[str, Estimate] | None = None
    log_perplexity: dict[str, Estimate] | None = None
    average_log_perplexity: dict[str, Estimate] | None = None
    worst_domain: WorstDomain | None = None
    differences: Differences | None = None
    bits_per_byte: dict[str, Estimate] | None = None
    accuracy: dict[str, Estimate] | None = None
    cost: Costs = Field(default_factory=Costs)
    distance_from_uniform: Estimate | None = None
    distance_from_against: Estimate | None = None
    stability: Stability | None = None
    gram_cosines: Cosines | None = None
    warnings: list[str] = Field(default_factory=list)
    trajectory: Trajectory | None = None
    stages: dict[int, Places] = Field(default_factory=dict)

    def average(self, group: str) -> Estimate | None:
        """Average log-perplexity over a group's domains, nats per token."""
        return (self.average_log_perplexity or {}).get(group)

    def difference(self, group: str) -> Estimate | None:
        """Of that average to `against`."""
        return self.differences.groups.get(group) if self.differences else None


class Machine(_Part):
    """What the stages ran on."""

    cores: int | None = None
    devices: str | None = None


class Summary(_Part):
    """summary.json."""

    version: Literal[1]
    name: str
    against: str
    seeds: list[int] = Field(min_length=1)
    machine: Machine = Field(default_factory=Machine)
    complete: bool
    groups: dict[str, list[str]] = Field(min_length=1)
    mixtures: dict[str, MixtureSummary] = Field(min_length=1)

    @model_validator(mode="after")
    def _compares_with_what_is_there(self) -> Self:
        for name in (self.against, *(mixture.against for mixture in self.mixtures.values())):
            if name not in self.mixtures:
                raise ValueError(f"against {name!r}, which is none of its mixtures")
        return self

    @property
    def measured(self) -> dict[str, MixtureSummary]:
        """Mixtures that bases were trained on and measured."""
        return {name: mixture for name, mixture in self.mixtures.items() if mixture.log_perplexity}

    def averages(self, group: str) -> dict[str, Estimate]:
        """Average log-perplexities over a group's domains, of the mixtures where that is a number."""
        found = {name: average for name, mixture in self.measured.items() if (average := mixture.average(group))}
        return {name: average for name, average in found.items() if average.mean is not None}

    @property
    def domains(self) -> list[str]:
        """All domains, those with large weights in the first learned mixture first."""
        learned = [mixture for mixture in self.mixtures.values() if mixture.method]
        weights: dict[str, float] = {}
        for mixture in [*learned, *self.mixtures.values()]:
            for name, weight in mixture.weights.items():
                weights.setdefault(name, weight.mean or 0.0)
        measured = [name for mixture in self.measured.values() for name in mixture.log_perplexity or ()]
        trained = sorted(weights, key=lambda name: -weights[name])
        return list(dict.fromkeys([*trained, *measured, *(name for group in self.groups.values() for name in group)]))


@dataclass(frozen=True)
class SummaryFile:
    """A summary, where it lies, and a title that tells it from the others of a page."""

    path: Path
    title: str
    summary: Summary


def read_summaries(files: Sequence[Path]) -> list[SummaryFile]:
    """Read summaries that are shown together.

    Raises:
        ConfigError: a file is no JSON object or cannot be read.
        RunError: it is damaged or no summary (the key), or named twice.
    """
    places = [file.resolve() for file in files]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise RunError(str(files[number]), "is named twice", "name each comparison once")
    found = [read_summary(file) for file in files]
    names = [summary.name for summary in found]
    titles = [name if names.count(name) == 1 else f"{name} ({file})" for name, file in zip(names, files, strict=True)]
    return [SummaryFile(*each) for each in zip(files, titles, found, strict=True)]


def read_summary(file: Path) -> Summary:
    """Raises ConfigError where it is no JSON object or cannot be read, RunError where it is no summary (the key)."""
    return validate_file(Summary, file)
