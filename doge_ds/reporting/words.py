"""What the report says in sentences: the answers, the notes, and the charts for those who do not see them."""

from collections.abc import Mapping, Sequence

import numpy as np

from doge_ds.config import ProxyConfig
from doge_ds.reporting import cells, tables
from doge_ds.reporting.run_files import DomainResult, RunRecord
from doge_ds.reporting.svg import LINES

_NAMED = 5  # domains that a sentence names


def proxy_sentence(run: RunRecord) -> str:
    """The answer of one proxy."""
    if run.mixture is None:
        return f"{run.name} has not logged any weights yet."
    ranked = sorted(run.mixture.domains.items(), key=lambda item: -item[1])
    shown = enumeration([f"{name} {weight:.3f}" for name, weight in ranked])
    if run.is_finished:
        return f"{run.name} learned {shown}. {_aim(run)}"
    done, steps = tables.steps_done(run), run.config.training.steps
    return (
        f"{run.name} is not finished: after {done:,} of {steps:,} steps its running mean is {shown}, and it will still "
        f"change. {_aim(run)}"
    )


def base_sentence(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """What one base was trained on, and how far it is."""
    origin = tables.mixture_origin(run, runs)
    trained = f"the {origin} mixture" if origin == "uniform" else f"the mixture {origin}"
    geometric = run.results.perplexity.geometric_perplexity if run.results and run.results.perplexity else None
    if geometric is not None:
        return (
            f"{run.name}, trained on {trained}, has a geometric mean perplexity of {cells.number(geometric)}"
            f"{_on_targets(run, runs)}."
        )
    if _without_likelihood(run):
        return f"{run.name}, trained on {trained}, has no finite perplexity: it diverged, or its weights are damaged."
    if run.is_finished:
        return f"{run.name} was trained on {trained}; its perplexity has not been measured, or is out of range."
    done, steps = tables.steps_done(run), run.config.training.steps
    return f"{run.name}, trained on {trained}, is not finished: {done:,} of {steps:,} steps are logged."


def _on_targets(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """What one base reaches on the targets of the proxies."""
    domains = _perplexities(run)
    names = dict.fromkeys(name for proxy in runs for name in proxy.target_domains if name in domains)
    texts = [f"{name} {cells.number(domains[name].perplexity)}" for name in names]
    return f"; on the target{'s' if len(texts) > 1 else ''}: {enumeration(texts)}" if texts else ""


def progress_note(run: RunRecord, points: int) -> str:
    """What a reader must know of the lines: unfinished, thinned, cut, not finite, or too many."""
    metrics, lines = run.metrics, len(run.metrics.steps)
    notes = []
    if not run.is_finished:
        when = f"; the last line was written {metrics.written:%Y-%m-%d %H:%M} UTC" if lines and metrics.written else ""
        notes.append(
            f"Not finished: {tables.steps_done(run):,} of {run.config.training.steps:,} steps are logged{when}."
        )
    if not lines:
        notes.append("Nothing has been logged yet.")
    if lines > points:
        notes.append(f"Lines are drawn through {points} of {lines:,} logged steps ({points // 2} on narrow screens).")
    if metrics.last_line_was_cut:
        notes.append("The last line of metrics.jsonl is cut off and left out.")
    lost = {line for key, found in metrics.not_finite.items() if _is_trouble(key, run) for line in found}
    if lost:
        notes.append(f"{len(lost)} of {lines:,} logged steps have a number that is not finite; lines go past it.")
    if (domains := len(metrics.names("loss/"))) > LINES:
        notes.append(
            f"The charts show {LINES} of {domains} domains, targets and largest weights first; the grey band reaches "
            "from the smallest to the largest of the others."
        )
    return " ".join(notes)


def weights_description(run: RunRecord) -> str:
    """The weights chart in words."""
    nothing = np.empty(0)
    series = {name: run.metrics.columns.get(f"weight/{name}", nothing) for name in run.train_domains}
    return weights_in_words(run.metrics.steps, series)


def weights_in_words(steps: np.ndarray, series: Mapping[str, np.ndarray]) -> str:
    """Weights of each domain at `steps`, [lines]: the first and the last."""
    changes = []
    for name, values in series.items():
        known = values[np.isfinite(values)]
        if len(known):
            changes.append((float(known[-1]), f"{name} from {known[0]:.3f} to {known[-1]:.3f}"))
    texts = [text for _, text in sorted(changes, key=lambda item: -item[0])]
    first, last = steps[[0, -1]]
    return f"Line chart of domain weights, step {first:.0f} to {last:.0f}: {enumeration(texts)}."


def losses_description(run: RunRecord) -> str:
    """The loss chart in words."""
    rate = run.metrics.last("learning_rate")
    ending = "" if rate is None else f"; the learning rate ends at {rate:.2g}"
    return f"Line chart of training losses in nats per token, {_first_and_last(run, 'loss/')}{ending}."


def held_out_description(run: RunRecord) -> str:
    """The chart of held-out log-perplexities in words."""
    return f"Line chart of held-out log-perplexities, {_first_and_last(run, 'held_out_log_perplexity/')}."


def _first_and_last(run: RunRecord, prefix: str) -> str:
    """Of a column for each domain, over the steps that are logged."""
    texts = []
    for name in run.metrics.names(prefix):
        values = run.metrics.columns[f"{prefix}{name}"]
        known = values[np.isfinite(values)]
        if len(known):
            texts.append(f"{name} from {known[0]:.2f} to {known[-1]:.2f}")
    first, last = run.metrics.steps[[0, -1]]
    return f"step {first:.0f} to {last:.0f}: {enumeration(texts)}"


def cosines_note(run: RunRecord) -> str:
    """Over which steps the cosines are a mean, which rows are shown, and the most and least alike."""
    cosines, names = run.metrics.cosines, run.metrics.cosine_rows
    if cosines is None:
        return "No step with a finite Gram matrix has been logged."
    notes = [
        f"Mean over {run.metrics.cosine_lines:,} logged step{'s' if run.metrics.cosine_lines > 1 else ''} of the Gram "
        "matrix with each gradient scaled to norm 1."
    ]
    off_diagonal = run.metrics.cosine_counts[~np.eye(len(names), dtype=bool)]
    if len(names) > 1 and off_diagonal.min() < run.metrics.cosine_lines:
        low, high = int(off_diagonal.min()), int(off_diagonal.max())
        notes.append(f"Each pair's is over the steps that have both: {low:,} to {high:,} of them.")
    shown = len(tables.heat_map_rows(run))
    if shown < len(names):
        notes.append(f"Shown are {shown} of {len(names)} rows: targets and the largest mean weights.")
    above = np.where(np.triu(np.ones_like(cosines, dtype=bool), 1), cosines, np.nan)
    if len(names) > 2 and np.isfinite(above).any():
        pairs = [np.unravel_index(find(above), above.shape) for find in (np.nanargmax, np.nanargmin)]
        most, least = (f"{names[i]} and {names[j]} ({cells.signed(float(cosines[i, j]))})" for i, j in pairs)
        notes.append(f"Most alike: {most}; least: {least}.")
    return " ".join(notes)


def perplexity_notes(bases: Sequence[RunRecord]) -> list[str]:
    """What limits a comparison of the perplexities."""
    notes = []
    measured = [run for run in bases if run.results and run.results.perplexity]
    if missing := [run.name for run in bases if run not in measured]:
        notes.append(f"Not measured: {', '.join(missing)}. Measure with eval/run.py.")
    lengths = {length for run in measured if run.results and (length := run.results.sequence_length)}
    if len(lengths) > 1:
        notes.append(f"Measured with windows of different lengths ({_joined(lengths)} tokens): compare with care.")
    if not tables.has_common_domains(bases):
        notes.append("Measured on different domains: the averages are not comparable, so they have no differences.")
    found = [domain for run in measured for domain in _perplexities(run).values()]
    if any(domain.perplexity is None and domain.log_perplexity is not None for domain in found):
        notes.append("A dash is a perplexity above the range of a number, or a domain that was not measured.")
    for run in measured:
        if lost := _without_likelihood(run):
            notes.append(f"{run.name} gives no finite likelihood for {enumeration(lost)}: dashes stand there.")
    trained_on = {run.facts.store for run in bases}
    measured_on = {run.results.data.fingerprint for run in measured if run.results and run.results.data}
    if measured_on - trained_on:
        notes.append("Measured on another store than the runs were trained on.")
    return notes


def _perplexities(run: RunRecord) -> dict[str, DomainResult]:
    """Of each domain that a base was measured on."""
    return run.results.perplexity.domains if run.results and run.results.perplexity else {}


def _without_likelihood(run: RunRecord) -> list[str]:
    """Domains that were measured and gave no number, as after a divergence."""
    return [name for name, domain in _perplexities(run).items() if domain.log_perplexity is None]


def _joined(values: Sequence[int] | set[int]) -> str:
    return ", ".join(f"{value:,}" for value in sorted(values))


def enumeration(texts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f", and {len(texts) - _NAMED} more" if len(texts) > _NAMED + 1 else ""
    return ", ".join(texts[:_NAMED] if more else texts) + more


def _aim(run: RunRecord) -> str:
    """What a proxy's weights are aimed at."""
    if not isinstance(run.config, ProxyConfig):
        raise TypeError(f"{run.name} is no proxy")
    if run.config.needs_reference:
        return "Its weights grow where its loss is furthest above that of a reference model (DoReMi)."
    target = run.config.target
    if target == "mix":
        return "Its weights are aimed at an even mix of the train domains."
    if target == "all":
        return "Its weights are aimed at all train domains."
    if target == "others":
        return "Each weight is aimed at all the other train domains."
    untrained = [name for name in target if name not in run.train_domains]
    if not untrained:
        return f"Its weights are aimed at {', '.join(target)}."
    if untrained == target:
        return f"Its weights are aimed at {', '.join(target)}, never trained on."
    return f"Its weights are aimed at {', '.join(target)}; never trained on: {', '.join(untrained)}."


def _is_trouble(key: str, run: RunRecord) -> bool:
    """Whether a null of this key means trouble: a base's loss of a domain is null where none of it was drawn."""
    if key.startswith("held_out_log_perplexity"):
        return True
    return key.startswith(("loss", "weight/", "score/", "gradient_norm/")) and (run.is_proxy or key == "loss")
