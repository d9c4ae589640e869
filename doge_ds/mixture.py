"""Mixture: named weights on the simplex, with provenance; what mixture.json holds.

    {"version": 1, "domains": {"arxiv": 0.088, ...}, "kind": "mean", "source": {...}}

Weights are keyed by name, never by position. Mixtures that others have published come with the package, by name, as
files of the same layout in doge_ds/published/.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from doge_ds.errors import ConfigError, MixtureError, nearest
from doge_ds.json_files import parse_json, read_bytes, write_json

# Weights written with a few digits do not sum to 1 exactly; this much is forgiven and divided out.
SUM_TOLERANCE = 1e-6
# What fp64 leaves of a sum of 1. A sum so near is not divided by: weights that were read once are read again as they
# are, bit for bit, which is how a run recognises its own mixture.
ROUNDING = 1e-12
_LAYOUT = '{"version": 1, "domains": {"wiki": 0.4, "books": 0.6}}'
PUBLISHED = Path(__file__).with_name("published")


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


def normalized(weights: Mapping[str, float], where: str, forgiven: float = SUM_TOLERANCE) -> dict[str, float]:
    """Weights whose sum is 1, divided by it where it is not; what has been through here once stays as it is.

    Raises:
        MixtureError: a weight is negative or not finite, the sum is further from 1 than `forgiven`, or it is 0.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise MixtureError(f"{where}: {name}", f"{weight} is no weight", "a weight is at least 0")
    total = math.fsum(weights.values())
    if total == 0:
        raise MixtureError(where, "every weight is 0", "give one of them a weight")
    if abs(total - 1) > forgiven:
        raise MixtureError(where, f"the weights sum to {total:.6g}", "divide each by that, so that they sum to 1")
    if abs(total - 1) <= ROUNDING:
        return dict(weights)
    return {name: weight / total for name, weight in weights.items()}


def read_mixture(path: Path, forgiven: float = SUM_TOLERANCE) -> Mixture:
    """Read mixture.json.

    Raises:
        MixtureError: no such file, no JSON, another layout, a weight that is negative or no number, or a sum further
            from 1 than `forgiven`.
    """
    try:
        mixture = Mixture.model_validate(parse_json(read_bytes(path)))
    except OSError as error:
        raise MixtureError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise MixtureError(f"{path}: {key}", first["msg"], f"write it like {_LAYOUT}") from None
    except ValueError as error:
        raise MixtureError(str(path), f"is no JSON ({error})", f"write it like {_LAYOUT}") from None
    return mixture.model_copy(update={"domains": normalized(mixture.domains, str(path), forgiven)})


def published_names() -> list[str]:
    """Names of the published mixtures, sorted."""
    return sorted(path.stem for path in PUBLISHED.glob("*.json"))


def published_mixture(name: str) -> Mixture:
    """One of them, divided by its sum: published digits are rounded and sum to 1.0001 or so."""
    return read_mixture(PUBLISHED / f"{name}.json", forgiven=0.01)


def choose_mixture(choice: str, tokens: Mapping[str, int], where: str = "", folder: Path = Path()) -> Mixture:
    """What `--mixture` names: "uniform", "natural" over the train domains' token counts, a published one, or a file.

    Args:
        choice: the word, name or path.
        tokens: of each train domain.
        where: the option or key, for the message; by default the option.
        folder: what a path is relative to.

    Raises:
        MixtureError: as `read_mixture`, or its domains are not the train domains.
        ConfigError: neither one of the words and names nor a file.
    """
    if choice == "uniform":
        return Mixture.uniform(list(tokens))
    if choice == "natural":
        return Mixture.natural(tokens)
    if choice in published_names():
        return published_mixture(choice).over(list(tokens), where=choice)
    path = folder / choice
    if not os.path.exists(path) and "/" not in choice and not choice.endswith(".json"):
        raise unknown_mixture(choice, where or f"--mixture {choice}")
    return read_mixture(path).over(list(tokens), where=str(path))


def unknown_mixture(choice: str, where: str) -> ConfigError:
    """For what is no file and no name: the nearest name, where there is one."""
    names = ["uniform", "natural", *published_names()]
    return ConfigError(where, f"{choice!r} is no file and names no mixture", nearest(choice, names))


def tokenizer_warning(mixture: Mixture, name: str, tokenizer_sha256: str) -> str:
    """One line where the weights were learned with another tokenizer than the store's; "" where they were not.

    Weights are shares of tokens, and tokenizers cut domains into different numbers of them.
    """
    learned = mixture.source.get("tokenizer_sha256")
    if not learned or learned == tokenizer_sha256:
        return ""
    return (
        f"warning: {name}: the weights were learned with another tokenizer ({str(learned)[:16]}) than the store's "
        f"({tokenizer_sha256[:16]}); a domain may have another share of the tokens here, so prefer weights of a proxy "
        "on this store"
    )
