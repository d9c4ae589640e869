"""Any file, run or name that holds one mixture, read for `doge-ds mixture`; and mixtures in other programs' formats."""

import json
import math
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml

from doge_ds.errors import ConfigError, MixtureError
from doge_ds.json_files import check_characters, parse_json, read_bytes
from doge_ds.mixture import (
    SUM_TOLERANCE,
    Mixture,
    normalized,
    published_mixture,
    published_names,
    read_mixture,
    unknown_mixture,
)

Format = Literal["json", "yaml", "megatron"]

# Where DoReMi's configurations have their weights; beside it they have the same for evaluation.
DOREMI_KEY = "train_domain_weights"


def read_any(given: str, tokens: Mapping[str, int] | None = None, normalize: bool = False) -> Mixture:
    """One mixture.

    Args:
        given: mixture.json, a run directory that has one, a published name, DoReMi's JSON, or JSON or YAML of
            `name: weight`; with `tokens` also uniform and natural.
        tokens: of the domains of a store.
        normalize: divide weights by their sum, whatever it is.

    Raises:
        MixtureError: it cannot be read, has another layout, a weight is none, or the sum is not 1.
        ConfigError: it is neither a file nor a name.
    """
    if given in ("uniform", "natural"):
        if tokens is None:
            raise ConfigError(given, "is a mixture over the domains of a store", "name the store with --data")
        return Mixture.uniform(list(tokens)) if given == "uniform" else Mixture.natural(tokens)
    if given in published_names():
        return published_mixture(given)
    path = Path(given)
    if os.path.isdir(path):
        path = path / "mixture.json"
        if not path.is_file():
            raise MixtureError(given, "has no mixture.json", "name a finished run of train_proxy.py, or a file")
    elif not os.path.exists(path) and "/" not in given and not path.suffix:
        raise unknown_mixture(given, given)
    forgiven = math.inf if normalize else SUM_TOLERANCE
    values = _read(path)
    if "domains" in values:
        return read_mixture(path, forgiven)
    weights = _plain_weights(values, path)
    try:
        domains = normalized(weights, str(path), forgiven)
    except MixtureError as error:
        if "sum to" in str(error):
            where, problem, _ = error.args
            raise MixtureError(where, problem, "give --normalize, and they are divided by it") from None
        raise
    return Mixture(domains=domains, source={"file": str(path)})


def _read(path: Path) -> dict[str, Any]:
    """JSON or YAML that holds an object. Raises MixtureError for anything else."""
    try:
        text = read_bytes(path)
        values = yaml.safe_load(text.decode()) if path.suffix in (".yaml", ".yml") else parse_json(text)
    except OSError as error:
        raise MixtureError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise MixtureError(str(path), f"is no JSON or YAML ({error})", "mend it, or name it .json or .yaml") from None
    if not isinstance(values, dict) or not values:
        raise MixtureError(str(path), "holds no weights by name", 'write it like {"wiki": 0.4, "books": 0.6}')
    return values


def _plain_weights(values: Mapping[str, Any], path: Path) -> dict[str, float]:
    """`name: weight` of a file, or of its part that DoReMi trains on."""
    if "schedule" in values:
        remedy = "train on it with --mixture, or name a file of one mixture"
        raise MixtureError(str(path), "holds a schedule of several mixtures", remedy)
    weights = values.get(DOREMI_KEY, values)
    if not isinstance(weights, dict) or not weights:
        raise MixtureError(f"{path}: {DOREMI_KEY}", "holds no weights by name", "write name: weight there")
    return {name: _weight(name, weight, path) for name, weight in weights.items()}


def _weight(name: Any, weight: Any, path: Path) -> float:
    """One weight. Raises MixtureError where it is none, or its domain's name is no text."""
    remedy = 'write it like {"wiki": 0.4, "books": 0.6}'
    try:
        check_characters(name)
    except (ValueError, AttributeError) as error:  # YAML has names that are dates, and half characters
        raise MixtureError(str(path), f"{name!r} is no name ({error})", remedy) from None
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        with suppress(OverflowError):
            return float(weight)
    # Not all of it: a few lines of YAML can stand for gigabytes.
    shown = json.dumps(weight)[:40] if isinstance(weight, str | bool | None) else f"of type {type(weight).__name__}"
    raise MixtureError(f"{path}: {name}", f"{shown} is no weight", remedy)


def exported(mixture: Mixture, form: Format, prefix: str = "") -> str:
    """The weights as other programs read them.

    Args:
        mixture: whose weights.
        form: "json" and "yaml": `name: weight`; "megatron": what stands behind its --data-path, `weight path` for each
            domain of positive weight, as it takes no others.
        prefix: folder of Megatron's files; a path is PREFIX/<domain>.
    """
    if form == "json":
        return json.dumps(mixture.domains, indent=2)
    if form == "yaml":
        return str(yaml.safe_dump(mixture.domains, sort_keys=False, allow_unicode=True)).rstrip("\n")
    words = []
    for name, weight in mixture.domains.items():
        if weight > 0:
            words += [f"{weight:.10g}", shlex.quote(str(Path(prefix) / name))]
    return " ".join(words)
