"""The report's data as CSV in data: URIs, within a budget of bytes."""

import csv
import io
import math
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from doge_ds.reporting.figures import thin
from doge_ds.reporting.run_files import RunRecord
from doge_ds.reporting.tables import heat_map_rows

# Of all files together; leaves more than half of a page of 2 MB to figures and tables.
BUDGET = 800_000


@dataclass(frozen=True)
class Download:
    """One file: its name, its data: URI, and what is in it."""

    file_name: str
    uri: str
    description: str


def downloads(runs: Sequence[RunRecord], budget: int = BUDGET) -> list[Download]:
    """Metrics and cosines of each run, mixtures, and perplexities, in about so many bytes together."""
    found = []
    share = budget // (2 * len(runs) + 2)
    for run in runs:
        stem = run.name.replace("/", "_")
        if len(run.metrics.steps):
            text, description = _metrics(run, share)
            found.append(as_download(f"{stem}_metrics.csv", text, f"{run.name}: metrics, {description}"))
        if run.metrics.cosines is not None:
            text, description = _cosines(run, run.metrics.cosines, share)
            found.append(as_download(f"{stem}_cosines.csv", text, f"{run.name}: mean cosines, {description}"))
    if any(run.mixture for run in runs):
        text = csv_text([["run", "domain", "weight"], *_mixture_rows(runs)])
        found.append(as_download("mixtures.csv", text, "mixtures: learned by a proxy, or trained on by a base"))
    if any(run.results and run.results.perplexity for run in runs):
        found.append(as_download("perplexities.csv", csv_text(_perplexity_rows(runs)), "held-out perplexities"))
    return found


def as_download(file_name: str, text: str, description: str) -> Download:
    """A CSV text as one file."""
    return Download(file_name, f"data:text/csv;charset=utf-8,{urllib.parse.quote(text, safe='/,.-+_<>')}", description)


def _metrics(run: RunRecord, budget: int) -> tuple[str, str]:
    """Every number of every logged step, or of as many as the budget takes."""
    columns = run.metrics.columns
    lines = len(run.metrics.steps)
    texts = [",".join(_number(column[line]) for column in columns.values()) for line in range(lines)]
    bytes_a_line = sum(map(len, texts)) // lines + 3  # an end of line becomes three characters, or six
    chosen = thin(lines, max(2, budget // bytes_a_line))
    text = csv_text([list(columns)]) + "".join(f"{texts[line]}\n" for line in chosen)
    return text, "every logged step" if len(chosen) == lines else f"{len(chosen)} of {lines:,} logged steps"


def _cosines(run: RunRecord, cosines: np.ndarray, budget: int) -> tuple[str, str]:
    """The whole matrix in the order of the metrics, or where that is too large the heat map's rows."""
    names = run.metrics.cosine_rows
    rows = list(range(len(names))) if 7 * len(names) ** 2 <= budget else heat_map_rows(run)
    lines = [
        [names[row], *("" if math.isnan(value) else f"{value:.3f}" for value in cosines[row, rows].tolist())]
        for row in rows
    ]
    text = csv_text([["", *(names[row] for row in rows)], *lines])
    return text, "all rows" if len(rows) == len(names) else f"{len(rows)} of {len(names)} rows"


def _mixture_rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    return [
        [run.name, name, repr(weight)] for run in runs if run.mixture for name, weight in run.mixture.domains.items()
    ]


def _perplexity_rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    rows = [["run", "domain", "log_perplexity", "perplexity", "bits_per_byte", "tokens"]]
    for run in runs:
        for name, result in run.results.perplexity.domains.items() if run.results and run.results.perplexity else ():
            values = (result.log_perplexity, result.perplexity, result.bits_per_byte)
            texts = ["" if value is None else repr(value) for value in values]
            rows.append([run.name, name, *texts, f"{result.tokens}"])
    return rows


def _number(value: float) -> str:
    """Six digits, whole numbers in full, nothing for what is not finite."""
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if value == round(value) and abs(value) < 2**53 else f"{value:.6g}"


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
