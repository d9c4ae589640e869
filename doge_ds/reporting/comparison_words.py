"""What the page of comparisons says in sentences: the answers, their limits, and the charts in words."""

from collections.abc import Sequence

import numpy as np

from doge_ds.reporting.cells import interval, number, signed
from doge_ds.reporting.comparison_tables import group_text
from doge_ds.reporting.interval_charts import IntervalPanel
from doge_ds.reporting.summaries import Estimate, MixtureSummary, Summary, have_the_same_seeds
from doge_ds.reporting.words import enumeration

_DIGITS = 4
_LEARNED = 5  # mixtures whose weights have a sentence


def answers(summary: Summary) -> list[str]:
    """Of each group which mixture is the best and whether that is shown; then what each proxy learned."""
    if not summary.measured:
        return ["No base of this comparison has been measured on held-out text.", *_learned(summary)]
    found = []
    for group in summary.groups:
        found.append(_answer(summary, group))
        if sides := _sides(summary, group):
            found.append(sides)
    return [*found, *_learned(summary)]


def _answer(summary: Summary, group: str) -> str:
    """The mixture with the lowest average, and its difference to what it is compared with."""
    known, over = summary.averages(group), group_text(summary, group)
    if not known:
        return f"No average over {over} is a number: nothing is measured, or every model diverged."
    if not have_the_same_seeds(known.values()):
        return f"Over {over}, no mixture is the best yet: their averages are of different seeds."
    best = min(known, key=lambda name: known[name].mean or 0.0)
    seeds = known[best].seeds
    level = f"{number(known[best].mean, _DIGITS)} nats per token, {'mean over' if seeds > 1 else 'of'} {_seeds(seeds)}"
    if len(known) == 1:
        return f"Only {_quoted(best)} has an average log-perplexity over {over}: {level}."
    text = f"Over {over}, {_quoted(best)} has the lowest average log-perplexity of {len(known)} mixtures: {level}."
    difference, against = summary.measured[best].difference(group), summary.measured[best].against
    if difference and difference.mean is not None:
        return f"{text} That is {_than(difference, against)}"
    if against != best:
        unknown = f"Its difference to {_quoted(against)} is not known"
        return f"{text} {unknown}: seeds that both have are missing, or one diverged."
    others = {
        name: found
        for name in known
        if (found := summary.measured[name].difference(group)) and summary.measured[name].against == best
    }
    nearest = {name: found.mean for name, found in others.items() if found.mean is not None}
    if not nearest:
        return text
    closest = min(nearest, key=lambda name: nearest[name])
    text += f" It is what others are compared with; the closest, {_quoted(closest)},"
    return f"{text} is {_than(others[closest], best)}"


def _than(difference: Estimate, against: str) -> str:
    """ "0.0469 lower than uniform, ..." and what that shows."""
    mean = difference.mean or 0.0
    text = f"{number(abs(mean), _DIGITS)} {'higher' if mean > 0 else 'lower'} than {_quoted(against)}"
    if difference.side is None:
        few = "with one seed" if difference.seeds == 1 else "without numbers of several seeds"
        return f"{text}; {few} there is no interval, so nothing is shown."
    ends = interval(difference.low, difference.high, _DIGITS)
    text += f", with a 95% interval of {ends} over {_seeds(difference.seeds)}"
    if difference.side == 0:
        return f"{text}. The interval contains 0: nothing is shown."
    return f"{text}. The interval excludes 0."


def _sides(summary: Summary, group: str) -> str:
    """Which mixtures' intervals lie below 0, above it, or reach both sides; nothing where there is one interval."""
    found: dict[int | None, list[str]] = {}
    for name, mixture in summary.measured.items():
        if difference := mixture.difference(group):
            found.setdefault(difference.side, []).append(name)
    intervals = sum(len(names) for side, names in found.items() if side is not None)
    if intervals < 2:
        return ""
    words = {-1: "below 0 (better)", 1: "above 0 (worse)", 0: "on both sides of 0 (nothing shown)"}
    texts = [f"{words[side]} for {_names(found[side])}" for side in (-1, 1, 0) if side in found]
    return f"The intervals of differences over {group_text(summary, group)} lie {'; '.join(texts)}."


def _learned(summary: Summary) -> list[str]:
    """The largest weights of each mixture that was learned, or of the first few."""
    texts = []
    for name, mixture in summary.mixtures.items():
        if mixture.method:
            means = [(domain, weight.mean) for domain, weight in mixture.weights.items() if weight.mean is not None]
            ranked = sorted(means, key=lambda pair: -pair[1])
            shown = enumeration([f"{domain} {mean:.3f}" for domain, mean in ranked])
            texts.append(f"{_quoted(name)} {f'learned {shown}' if shown else 'has learned no weights yet'}.")
    if len(texts) <= _LEARNED + 1:
        return texts
    return [*texts[:_LEARNED], f"The table of weights has those of the other {len(texts) - _LEARNED}."]


def notes(summary: Summary) -> list[str]:
    """What limits these answers."""
    found = []
    if not summary.complete:
        texts = [f"{_quoted(name)} {_finished(mixture)}" for name, mixture in summary.mixtures.items()]
        found.append(
            f"This comparison is not finished. Of {_seeds(len(summary.seeds))}, there are numbers of: "
            f"{enumeration(texts)}."
        )
    differences = [mixture.differences for mixture in summary.measured.values() if mixture.differences]
    intervals = [group for each in differences for group in each.groups.values() if group.side is not None]
    if intervals:
        found.append(
            "Intervals are Student's, of differences between bases of the same seed: they hold what another seed "
            "changes, not what other held-out text would."
        )
    if len(intervals) > 1:
        found.append(
            f"Each of the {len(intervals)} intervals of averages is for itself: the more there are, the likelier one "
            "excludes 0 by chance."
        )
    lost = [
        name
        for name, mixture in summary.measured.items()
        if any(average.mean is None and average.by_seed for average in (mixture.average_log_perplexity or {}).values())
    ]
    if lost:
        found.append(f"Without a finite average of every seed, as where a base diverged: {_names(lost)}.")
    unmeasured = [name for name in summary.mixtures if name not in summary.measured]
    if unmeasured and summary.measured:
        found.append(f"Without measured bases: {_names(unmeasured)}.")
    return found


def _finished(mixture: MixtureSummary) -> str:
    """For how many seeds there are numbers, "2", or of which kind there are none."""
    first = next(iter((mixture.log_perplexity or mixture.weights).values()), None)
    return f"{first.seeds if first else 0}"


def intervals_in_words(panels: Sequence[IntervalPanel], title: str) -> str:
    """A dot chart for those who do not see it."""
    texts = []
    for panel in panels:
        known = [(name, row, row.mean) for name, row in panel.rows.items() if row.mean is not None]
        rows = [f"{name} {signed(mean, _DIGITS)} ({interval(row.low, row.high, _DIGITS)})" for name, row, mean in known]
        texts.append(f"{panel.title}: {enumeration(rows)}")
    return f"Dot chart. {title}. {'; '.join(texts)}."


def cosines_note(rows: Sequence[str], columns: Sequence[str], cosines: np.ndarray) -> str:
    """Which two domains' gradients are the most alike, and the least; [rows, columns]."""
    is_other = np.array([[row != column for column in columns] for row in rows])
    found = np.where(is_other & np.isfinite(cosines), cosines, np.nan)
    if np.isfinite(found).sum() < 2:
        return ""
    pairs = [divmod(int(find(found)), len(columns)) for find in (np.nanargmax, np.nanargmin)]
    most, least = (f"{rows[i]} and {columns[j]} ({signed(float(found[i, j]))})" for i, j in pairs)
    return f"Most alike: {most}; least: {least}."


def _names(names: Sequence[str]) -> str:
    return enumeration([_quoted(name) for name in names])


def _quoted(name: str) -> str:
    """A name as it stands in a sentence: in quotes where one could not see where it ends."""
    return f'"{name}"' if "," in name or " " in name else name


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"
