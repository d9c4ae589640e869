"""Mixture: named weights on the simplex, with provenance; what mixture.json holds.

    {"version": 1, "domains": {"arxiv": 0.088, ...}, "kind": "mean", "source": {...}}

Weights are keyed by name, never by position.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from doge_ds.errors import ConfigError, MixtureError, nearest
from doge_ds.json_files import write_json

# Weights written with a few digits do not sum to 1 exactly; this much is forgiven and divided out.
SUM_TOLERANCE = 1e-6


class Mixture(BaseModel):
    """A distribution over domains.

    Attributes:
        domains: weight of each domain; at least 0, sum 1.
        kind: "mean" of a proxy's weights over its steps; "given" by hand, "uniform" or "natural".
        source: where it comes from: method, run, step, config and tokenizer hashes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    domains: dict[str, float] = Field(min_length=1)
    kind: Literal["mean", "given", "uniform", "natural"] = "given"
    source: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def uniform(cls, domains: Sequence[str]) -> "Mixture":
        """The same weight for every domain."""
        return cls(domains={name: 1 / len(domains) for name in domains}, kind="uniform")

    @classmethod
    def natural(cls, tokens: Mapping[str, int]) -> "Mixture":
        """Weights in proportion to the tokens there are of each domain."""
        total = sum(tokens.values())
        return cls(domains={name: count / total for name, count in tokens.items()}, kind="natural")

    def write(self, path: Path) -> None:
        """Write mixture.json, in one piece or not at all."""
        write_json(path, self.model_dump(mode="json"))

    def over(self, domains: Sequence[str], where: str) -> "Mixture":
        """This mixture with its domains in the order of `domains`.

        Raises:
            MixtureError: a domain is missing here or there.
        """
        for name in self.domains:
            if name not in domains:
                raise MixtureError(
                    where, f"has a weight for {name!r}, which is no train domain", nearest(name, domains)
                )
        if missing := [name for name in domains if name not in self.domains]:
            raise MixtureError(
                where,
                f"has no weight for {missing[0]!r}",
                "add it (0 is allowed), or name the domains to train on in data.train_domains",
            )
        return self.model_copy(update={"domains": {name: self.domains[name] for name in domains}})


def read_mixture(path: Path) -> Mixture:
    """Read mixture.json.

    Raises:
        MixtureError: no such file, no JSON, another layout, a weight that is negative or no number, or a sum other
            than 1 (tolerance 1e-6).
    """
    try:
        mixture = Mixture.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MixtureError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise MixtureError(
            f"{path}: {key}", first["msg"], 'write it like {"version": 1, "domains": {"wiki": 0.4, "books": 0.6}}'
        ) from None
    for name, weight in mixture.domains.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise MixtureError(f"{path}: {name}", f"{weight} is no weight", "a weight is at least 0")
    total = math.fsum(mixture.domains.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise MixtureError(str(path), f"the weights sum to {total:.6g}", "divide each by that, so that they sum to 1")
    return mixture.model_copy(update={"domains": {name: weight / total for name, weight in mixture.domains.items()}})


def choose_mixture(choice: str, tokens: Mapping[str, int]) -> Mixture:
    """What `--mixture` names: a file, "uniform", or "natural" over the train domains' token counts.

    Raises:
        MixtureError: as `read_mixture`, or the file's domains are not the train domains.
        ConfigError: neither a file nor one of the two words.
    """
    if choice == "uniform":
        return Mixture.uniform(list(tokens))
    if choice == "natural":
        return Mixture.natural(tokens)
    if not Path(choice).exists() and "/" not in choice and not choice.endswith(".json"):
        raise ConfigError(f"--mixture {choice}", "is no file", "give a mixture.json, or uniform or natural")
    return read_mixture(Path(choice)).over(list(tokens), where=choice)


def mixture_from_weights(weights: Mapping[str, float], source: dict[str, Any]) -> Mixture:
    """The running mean of a proxy as a mixture; divided by its sum, which differs from 1 by rounding."""
    total = math.fsum(weights.values())
    return Mixture(domains={name: weight / total for name, weight in weights.items()}, kind="mean", source=source)
