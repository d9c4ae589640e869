"""`doge-ds mixture ...`: look at mixtures, compare, average and change them, make schedules, write other formats."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, MixtureError, nearest
from doge_ds.json_files import json_text, write_text
from doge_ds.mixture import Mixture, published_names, tokenizer_warning
from doge_ds.mixture_files import exported, read_any
from doge_ds.mixture_schedule import ScheduleFile
from doge_ds.mixture_stages import schedule_of_run
from doge_ds.mixture_tables import (
    check_plot,
    effective_domains,
    kl_divergence,
    one_table,
    several_table,
    total_variation,
    write_plot,
)

# Hashes of averaged or changed mixtures that stay true where all of them have the same.
_KEPT = ("store", "tokenizer_sha256")
_EXAMPLES = f"""examples:
  doge-ds mixture show runs/proxy --plot mixture.png
  doge-ds mixture show doge_slimpajama --data data/store --json
  doge-ds mixture show weights.yaml --normalize -o mixture.json
  doge-ds mixture compare runs/proxy doge_slimpajama natural --data data/store
  doge-ds mixture average runs/seed1 runs/seed2 --weights 1 2 -o mean.json
  doge-ds mixture set runs/proxy wikipedia=0.2 -o more_wiki.json
  doge-ds mixture schedule runs/proxy --stages 3 --steps 40000 -o stages.json
  doge-ds mixture export runs/proxy --format megatron --prefix data/bin

A mixture M is a mixture.json, a finished proxy's run directory, JSON or YAML of name: weight, DoReMi's JSON, or one
that was published: {", ".join(published_names())}.
With --data also uniform and natural (token counts). Weights that do not sum to 1 want --normalize."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `doge-ds mixture`."""
    parser.epilog = _EXAMPLES
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, many: bool = False, run: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        if run:
            made.add_argument("run", type=Path, metavar="RUN", help="run directory of train_proxy.py")
        else:
            made.add_argument("mixtures", nargs="+" if many else 1, metavar="M", help="a file, run or published name")
            made.add_argument("--normalize", action="store_true", help="divide weights by their sum")
        return made

    show = command("show", "weights, their ratio to uniform, and the effective number of domains")
    compare = command("compare", "weights side by side; KL divergence and total variation to the first", many=True)
    average = command("average", "the mean of several mixtures, as of runs with other seeds", many=True)
    average.add_argument("--weights", nargs="+", type=float, metavar="W", help="one for each; by default all the same")
    change = command("set", "set some weights and scale the others, so that the sum stays 1")
    change.add_argument("settings", nargs="+", metavar="NAME=WEIGHT", help="weights to set")
    schedule = command("schedule", "a mixture for each of N parts of a base run, from a proxy's trajectory", run=True)
    schedule.description = (
        "The mean weights of N equal parts of a proxy's run, for the same parts of a base run. "
        "DoGE's paper found such stages no better than the mean of the whole run."
    )
    schedule.add_argument("--stages", type=int, required=True, metavar="N", help="parts")
    schedule.add_argument("--steps", type=int, metavar="B", help="of the base run; by default as many as the proxy's")
    export = command("export", "the weights as other programs read them")
    export.add_argument("--format", choices=["json", "yaml", "megatron"], default="json", help="default: json")
    export.add_argument("--prefix", default="", metavar="DIR", help="folder of Megatron's files: DIR/<domain>")
    for made in (show, compare):
        made.add_argument("--data", type=Path, metavar="STORE", help="token store, for uniform, natural and a warning")
        made.add_argument("--plot", type=Path, metavar="FILE", help="bars as FILE.png, .svg or .pdf")
    for made in (show, average, change, schedule, export):
        made.add_argument("-o", "--output", type=Path, metavar="FILE", help="write a file; none is replaced")
    for made in (show, compare, average, change, schedule):
        made.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds mixture`: what the command says; 0."""
    if plot := getattr(arguments, "plot", None):
        check_plot(plot)
    return {
        "show": _show,
        "compare": _compare,
        "average": _average,
        "set": _set,
        "schedule": _schedule,
        "export": _export,
    }[arguments.command](arguments)


def _show(arguments: argparse.Namespace) -> int:
    ((name, mixture),) = _read(arguments).items()
    status = _give(mixture, arguments)
    if arguments.plot:
        write_plot({name: mixture.domains}, arguments.plot)
    return status


def _compare(arguments: argparse.Namespace) -> int:
    weights = {name: mixture.domains for name, mixture in _read(arguments).items()}
    first = next(iter(weights.values()))
    if arguments.json:
        _print_json(
            {
                "mixtures": weights,
                "kl_from_first": {name: kl_divergence(first, it) for name, it in weights.items()},
                "kl_to_first": {name: kl_divergence(it, first) for name, it in weights.items()},
                "total_variation": {name: total_variation(first, it) for name, it in weights.items()},
                "effective_domains": {name: effective_domains(it) for name, it in weights.items()},
            }
        )
    else:
        print(several_table(weights))
    if arguments.plot:
        write_plot(weights, arguments.plot)
    return 0


def _average(arguments: argparse.Namespace) -> int:
    return _give(average(_read(arguments), arguments.weights), arguments)


def average(mixtures: Mapping[str, Mixture], factors: Sequence[float] | None = None) -> Mixture:
    """The weighted mean of mixtures over the same domains.

    Args:
        mixtures: by the names that its source shall have.
        factors: one for each, divided by their sum; None for equal ones.

    Raises:
        ConfigError: not one factor for each, or factors that are negative, not finite or all 0.
        MixtureError: the mixtures have not the same domains.
    """
    factors = list(factors or [1.0] * len(mixtures))
    if len(factors) != len(mixtures):
        problem = f"are {len(factors)} where there are {len(mixtures)} mixtures"
        raise ConfigError("--weights", problem, "give one for each, or none")
    total = sum(factors)
    if not 0 < total < float("inf") or min(factors) < 0:
        raise ConfigError("--weights", f"{factors} cannot stand", "give numbers of at least 0, not all 0")
    domains = list(next(iter(mixtures.values())).domains)
    found = [mixture.over(domains, name) for name, mixture in mixtures.items()]
    mean = {
        name: sum(factor * it.domains[name] for factor, it in zip(factors, found, strict=True)) / total
        for name in domains
    }
    source = {"method": "average", "of": list(mixtures), "weights": [factor / total for factor in factors]}
    return Mixture(domains=mean, kind="mean", source=source | _common_facts(found))


def _set(arguments: argparse.Namespace) -> int:
    ((name, mixture),) = _read(arguments).items()
    return _give(changed(mixture, name, _settings(arguments.settings)), arguments)


def changed(mixture: Mixture, name: str, settings: Mapping[str, float]) -> Mixture:
    """The mixture with some weights set and the others scaled, so that they sum to 1 and keep their proportions.

    Raises:
        MixtureError: a domain that it has not, or weights that leave no sum of 1.
    """
    for domain, weight in settings.items():
        if domain not in mixture.domains:
            raise MixtureError(name, f"has no domain {domain!r}", nearest(domain, mixture.domains))
        if not 0 <= weight <= 1:
            raise MixtureError(f"{domain}={weight:g}", "is no weight", "give a number from 0 to 1")
    left = 1 - sum(settings.values())
    others = sum(weight for domain, weight in mixture.domains.items() if domain not in settings)
    if left < -1e-12 or (others == 0 and left > 1e-12):
        problem = f"would sum to {sum(settings.values()):g} with the others at 0"
        raise MixtureError(name, problem, "set weights that sum to at most 1, and to 1 where no others are left")
    scale = max(left, 0.0) / others if others else 0.0
    domains = {domain: settings.get(domain, weight * scale) for domain, weight in mixture.domains.items()}
    source = {"method": "set", "from": name, "set": dict(settings)}
    return Mixture(domains=domains, source=source | _common_facts([mixture]))


def _settings(words: Sequence[str]) -> dict[str, float]:
    """["wiki=0.2"] -> {"wiki": 0.2}."""
    found = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            found[name] = float(text)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"{word!r}", "sets no weight", "write it like wikipedia=0.2")
    return found


def _schedule(arguments: argparse.Namespace) -> int:
    found = schedule_of_run(arguments.run, arguments.stages, arguments.steps)
    if arguments.output:
        _write(arguments.output, json_text(found.model_dump(mode="json")))
    if arguments.json:
        _print_json(found.model_dump(mode="json"))
    else:
        print(several_table(_stage_weights(found)))
    return 0


def _stage_weights(schedule: ScheduleFile) -> dict[str, dict[str, float]]:
    return {
        f"from step {stage.from_step}": stage.mixture for stage in schedule.schedule if isinstance(stage.mixture, dict)
    }


def _export(arguments: argparse.Namespace) -> int:
    ((_, mixture),) = _read(arguments).items()
    text = exported(mixture, arguments.format, arguments.prefix)
    if arguments.output:
        _write(arguments.output, text + "\n")
    else:
        print(text)
    return 0


def _read(arguments: argparse.Namespace) -> dict[str, Mixture]:
    """The mixtures by the names that the user gave; with a warning for each that another tokenizer stands behind."""
    store = TokenStore(arguments.data) if getattr(arguments, "data", None) else None
    tokens = {name: store.record(name, "train").tokens for name in store.domains} if store else None
    found: dict[str, Mixture] = {}
    for given in arguments.mixtures:
        if given in found:
            raise ConfigError(given, "is named twice", "name each mixture once")
        found[given] = read_any(given, tokens, arguments.normalize)
        warning = tokenizer_warning(found[given], given, store.manifest.tokenizer.sha256) if store else ""
        if warning:
            print(warning, file=sys.stderr)
    return found


def _give(mixture: Mixture, arguments: argparse.Namespace) -> int:
    """Write mixture.json where that is wanted, and print a table or JSON."""
    if arguments.output:
        _write(arguments.output, json_text(mixture.model_dump(mode="json")))
    if arguments.json:
        _print_json(mixture.model_dump(mode="json") | {"effective_domains": effective_domains(mixture.domains)})
    else:
        print(one_table(mixture.domains))
    return 0


def _common_facts(mixtures: Sequence[Mixture]) -> dict[str, Any]:
    """Hashes of store and tokenizer, where all mixtures have the same."""
    first = mixtures[0].source
    return {
        key: first[key]
        for key in _KEPT
        if key in first and all(mixture.source.get(key) == first[key] for mixture in mixtures)
    }


def _write(output: Path, text: str) -> None:
    """A file, in one piece or not at all; none is replaced. One that holds this already is what was asked for: a job
    that Slurm starts a second time has nothing left to do.

    Raises:
        ConfigError: it holds something else, or cannot be written.
    """
    try:
        if os.path.lexists(output):
            if not output.is_file() or output.read_bytes() != text.encode():
                raise ConfigError(f"-o {output}", "exists, and is not touched", "name another file")
            print(f"written before: {output}", file=sys.stderr)
        else:
            write_text(output, text)
            print(f"written: {output}", file=sys.stderr)
    except OSError as error:
        remedy = "name a file in a folder of yours"
        raise ConfigError(f"-o {output}", f"cannot be written ({error.strerror})", remedy) from None


def _print_json(values: Any) -> None:
    print(json_text(values), end="")
