"""What `doge-ds mixture` shows: tables, distances between mixtures, and bars."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from doge_ds.errors import ConfigError

BAR = 30  # characters of the largest weight's bar
PLOT_FORMATS = (".png", ".svg", ".pdf")

Weights = Mapping[str, float]


def kl_divergence(one: Weights, other: Weights) -> float:
    """KL(one || other) in nats; infinite where `other` gives nothing to a domain that `one` has."""
    total = 0.0
    for name, weight in one.items():
        if weight > 0:
            there = other.get(name, 0.0)
            if there <= 0:
                return math.inf
            total += weight * math.log(weight / there)
    return max(total, 0.0)  # rounding makes -1e-17 of two that are the same


def total_variation(one: Weights, other: Weights) -> float:
    """Half the sum of differences, 0 to 1: the share of the samples that would come from another domain."""
    return 0.5 * math.fsum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other})


def effective_domains(weights: Weights) -> float:
    """exp of the entropy: k for k equal weights, 1 for one domain alone."""
    return math.exp(-math.fsum(weight * math.log(weight) for weight in weights.values() if weight > 0))


def one_table(weights: Weights) -> str:
    """Domains by weight, each with its ratio to the uniform weight and a bar."""
    largest = max(weights.values())
    rows = [
        [name, f"{weight:.4f}", f"x{weight * len(weights):.2f}", "#" * round(BAR * weight / largest)]
        for name, weight in sorted(weights.items(), key=lambda item: -item[1])
    ]
    lines = aligned([["domain", "weight", "to uniform", ""], *rows], right=(1, 2))
    return f"{lines}\neffective number of domains: {effective_domains(weights):.2f} of {len(weights)}"


def several_table(mixtures: Mapping[str, Weights]) -> str:
    """Domains by the first mixture's weight, one column each, and below it the distances to the first."""
    names = list(mixtures)
    first = mixtures[names[0]]
    rows = []
    for domain in domains_of(mixtures):
        found = [weights.get(domain) for weights in mixtures.values()]
        rows.append([domain, *("-" if weight is None else f"{weight:.4f}" for weight in found)])
    rows += [[""], ["KL(first || it), nats", *(f"{kl_divergence(first, it):.4f}" for it in mixtures.values())]]
    rows += [["KL(it || first), nats", *(f"{kl_divergence(it, first):.4f}" for it in mixtures.values())]]
    rows += [["total variation", *(f"{total_variation(first, it):.4f}" for it in mixtures.values())]]
    rows += [["effective domains", *(f"{effective_domains(it):.2f}" for it in mixtures.values())]]
    return aligned([["domain", *names], *rows], right=range(1, len(names) + 1))


def domains_of(mixtures: Mapping[str, Weights]) -> list[str]:
    """All domains, by the first mixture's weight, then the second's."""
    names = dict.fromkeys(name for weights in mixtures.values() for name in weights)
    return sorted(names, key=lambda name: [-weights.get(name, -1.0) for weights in mixtures.values()])


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] | range) -> str:
    """Rows as lines of columns of the same width; the columns `right` end at the same place."""
    widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(max(map(len, rows)))]
    return "\n".join(
        "  ".join(
            text.rjust(widths[place]) if place in right else text.ljust(widths[place]) for place, text in enumerate(row)
        ).rstrip()
        for row in rows
    )


def check_plot(path: Path) -> None:
    """Raises ConfigError where no picture can be written there."""
    if path.suffix.lower() not in PLOT_FORMATS:
        raise ConfigError(f"--plot {path}", "is no picture's name", f"let it end with {', '.join(PLOT_FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}", "lies in a folder that is not there", "make the folder")


def write_plot(mixtures: Mapping[str, Weights], path: Path) -> None:
    """Bars for every domain, one for each mixture; PNG, SVG or PDF by the name. Raises ConfigError as `check_plot`."""
    check_plot(path)
    from matplotlib.figure import Figure  # takes a second to load

    domains = domains_of(mixtures)
    figure = Figure(figsize=(7, 1.2 + 0.22 * len(domains) * (1 + len(mixtures))), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(mixtures)
    for number, weights in enumerate(mixtures.values()):
        places = [place + (number - (len(mixtures) - 1) / 2) * height for place in range(len(domains))]
        axes.barh(places, [weights.get(domain, 0.0) for domain in domains], height)
    axes.set_yticks(range(len(domains)), domains, parse_math=False)  # a name may have dollars in it
    axes.invert_yaxis()
    axes.set_xlabel("weight")
    if len(mixtures) > 1:
        for text in axes.legend(axes.containers, list(mixtures)).get_texts():
            text.set_parse_math(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"--plot {path}", f"cannot be written ({error.strerror})", "name another place") from None
