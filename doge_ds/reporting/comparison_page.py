"""The page of comparisons: what it says, in which order; comparison.html and style.css say how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from doge_ds.reporting import comparison_figures, comparison_tables, comparison_words, weight_tables
from doge_ds.reporting.cells import Table
from doge_ds.reporting.comparison_downloads import comparison_downloads
from doge_ds.reporting.downloads import BUDGET
from doge_ds.reporting.page_files import check_output, write_page
from doge_ds.reporting.summaries import MixtureSummary, SummaryFile, read_summaries
from doge_ds.reporting.svg import LINES, Chart
from doge_ds.reporting.templates import fill_template, fitting_page

# Learned mixtures whose charts and heat maps a page has room for, all comparisons together; tables have all.
_DRAWN = 12


@dataclass(frozen=True)
class LearnedSection:
    """What the page shows of how one mixture was learned."""

    name: str
    warnings: list[str]
    weights: Chart | None
    cosines: Table | None
    cosines_note: str


@dataclass(frozen=True)
class ComparisonSection:
    """What the page shows of one comparison."""

    title: str
    answers: list[str]
    notes: list[str]
    averages: list[Table]
    average_chart: Chart | None
    domain_chart: Chart | None
    domains: list[Table]
    accuracies: Table | None
    weights: list[Table]
    weights_note: str
    learned: list[LearnedSection]
    stability: Table | None
    costs: list[Table]
    origins: Table
    places: Table


def write_comparison_page(summaries: Sequence[Path], output: Path) -> None:
    """Write or replace the page of one comparison or several, in one piece or not at all.

    Args:
        summaries: summary.json of each, finished or not.
        output: the HTML file.

    Raises:
        ConfigError: the output cannot be written there, or is there and no report of ours; a summary is no JSON object
            or cannot be read; or they do not fit on a page.
        RunError: a summary is damaged (the key), or named twice.
    """
    check_output(output, str(output))
    write_page(render_comparison_page(read_summaries(summaries), datetime.now(UTC)), output, str(output))


def render_comparison_page(files: Sequence[SummaryFile], written: datetime) -> str:
    """The whole page as HTML, below 2 MB; names that come from files are escaped.

    Raises:
        ConfigError: so many comparisons, mixtures or domains that they do not fit, also with fewer charts and points.
    """

    def render(thinning: int) -> str:
        return fill_template("comparison.html", written, _contents(files, thinning))

    return fitting_page(render, f"{len(files)} comparison{'s' if len(files) > 1 else ''}")


def _contents(files: Sequence[SummaryFile], thinning: int) -> dict[str, Any]:
    learned = sum(_has_pictures(mixture) for file in files for mixture in file.summary.mixtures.values())
    drawn = max(1, _DRAWN // (thinning * len(files)))  # of each comparison
    points = comparison_figures.POINTS // (thinning * max(1, min(learned, drawn * len(files)) // 2))
    return {
        "title": ", ".join(file.title for file in files),
        "fronts": _fronts(files) if len(files) > 1 else [],
        "sections": [_section(file, number, drawn, points) for number, file in enumerate(files)],
        "downloads": comparison_downloads(files, BUDGET // thinning),
    }


def _fronts(files: Sequence[SummaryFile]) -> list[Table]:
    """All comparisons side by side: what bases have measured, and how far learned weights lie apart."""
    measured = [file for file in files if file.summary.measured]
    averages = comparison_tables.front_table(measured) if measured else None
    return [table for table in (averages, weight_tables.front_weight_table(files)) if table]


def _has_pictures(mixture: MixtureSummary) -> bool:
    return mixture.trajectory is not None or mixture.gram_cosines is not None


def _section(file: SummaryFile, number: int, drawn: int, points: int) -> ComparisonSection:
    summary = file.summary
    is_measured = bool(summary.measured)
    learned = {name: mixture for name, mixture in summary.mixtures.items() if mixture.method}
    sections = [
        _learned(name, mixture, summary.domains, f"c{number}w{place}", points if place < drawn else 0)
        for place, (name, mixture) in enumerate(learned.items())
    ]
    domains = [
        comparison_tables.difference_table(summary),
        comparison_tables.log_perplexity_table(summary) if is_measured else None,
        comparison_tables.bits_table(summary),
        comparison_tables.worst_table(summary),
    ]
    weights = [weight_tables.weight_table(summary), weight_tables.weight_table(summary, of_last_step=True)]
    return ComparisonSection(
        file.title,
        comparison_words.answers(summary),
        comparison_words.notes(summary),
        [comparison_tables.average_table(summary, group) for group in summary.groups] if is_measured else [],
        comparison_figures.average_chart(summary, f"c{number}a"),
        comparison_figures.domain_chart(summary, f"c{number}d"),
        [table for table in domains if table],
        comparison_tables.accuracy_table(summary),
        [table for table in weights if table],
        _weights_note(len(learned), drawn, len(summary.domains)),
        [section for section in sections if section.warnings or section.weights or section.cosines],
        weight_tables.stability_table(summary),
        weight_tables.cost_tables(summary),
        weight_tables.origin_table(summary),
        weight_tables.places_table(summary),
    )


def _learned(name: str, mixture: MixtureSummary, order: Sequence[str], chart: str, points: int) -> LearnedSection:
    """Without points: its warnings alone."""
    weights = cosines = None
    note = ""
    if points and mixture.trajectory:
        weights = comparison_figures.trajectory_chart(name, mixture, order, chart, points)
    if points and mixture.gram_cosines:
        cosines = weight_tables.cosine_table(name, mixture)
        note = comparison_words.cosines_note(*weight_tables.shown_cosines(mixture.gram_cosines, mixture))
    return LearnedSection(name, list(dict.fromkeys(mixture.warnings)), weights, cosines, note)


def _weights_note(learned: int, drawn: int, domains: int) -> str:
    """What of the learned mixtures is left out of the pictures."""
    notes = []
    if learned > drawn:
        notes.append(f"Charts and heat maps are of the first {drawn} of {learned} learned mixtures.")
    if learned and domains > LINES:
        notes.append(
            f"The charts show {LINES} of {domains} domains, the largest weights first; the grey band reaches from the "
            "smallest to the largest of the others."
        )
    return " ".join(notes)
