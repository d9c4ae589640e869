"""Charts of a comparison, for its page and as files of their own."""

import importlib.resources
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import escape
from matplotlib.patches import Rectangle

from doge_ds.errors import ConfigError
from doge_ds.reporting import comparison_words, figures, words
from doge_ds.reporting.cells import SHADES
from doge_ds.reporting.comparison_tables import group_text
from doge_ds.reporting.heat_map import shades_of, signed_cosine
from doge_ds.reporting.interval_charts import IntervalPanel, draw_intervals
from doge_ds.reporting.summaries import MixtureSummary, Summary, read_summary
from doge_ds.reporting.svg import LINE_COLORS, Chart, as_svg, drawing, shorten, text_width
from doge_ds.reporting.weight_tables import shown_cosines

POINTS = 240  # of a line on a wide drawing
_ROWS = 60  # of all panels of a chart: what a reader scrolls past, the tables have
_CELL, _LABEL_WIDTH = 44, 160  # pixels
_FILE_NAME = 60  # characters


def average_chart(summary: Summary, name: str) -> Chart | None:
    """Differences of the groups' averages, a panel a group; None where there are none."""
    panels = []
    for group in summary.groups:
        rows = {name: found for name, mixture in summary.measured.items() if (found := mixture.difference(group))}
        panels.append(IntervalPanel(f"Average over {group_text(summary, group)}", rows))
    return _differences(panels, name, f"averages, to {_reference(summary)}")


def domain_chart(summary: Summary, name: str) -> Chart | None:
    """Differences of each domain, a panel a mixture; None where there are none."""
    panels = [
        IntervalPanel(name, {domain: found.domains[domain] for domain in summary.domains if domain in found.domains})
        for name, mixture in summary.measured.items()
        if (found := mixture.differences)
    ]
    return _differences(panels, name, f"each domain, to {_reference(summary)}")


def _reference(summary: Summary) -> str:
    found = list(dict.fromkeys(mixture.against for mixture in summary.measured.values() if mixture.differences))
    return found[0] if len(found) == 1 else "what each mixture is compared with"


def _differences(panels: Sequence[IntervalPanel], name: str, of: str) -> Chart | None:
    shown: list[IntervalPanel] = []
    for panel in panels:
        room = _ROWS - sum(len(each.rows) for each in shown)
        shown.append(IntervalPanel(panel.title, dict(list(panel.rows.items())[: max(0, room)])))
    left_out = sum(len(panel.rows) for panel in panels) - sum(len(panel.rows) for panel in shown)
    title = f"Differences in log-perplexity of {of}"
    has_intervals = any(row.side is not None for panel in shown for row in panel.rows.values())
    shows = "mean, 95% interval and small marks for the seeds" if has_intervals else "no intervals with one seed"
    filled = " A dot is filled where the interval excludes 0." if has_intervals else ""
    more = f" Left out: {left_out} more rows." if left_out else ""
    caption = f"{title}: {shows}; below 0 is better.{filled}{more}"
    described = comparison_words.intervals_in_words([panel for panel in shown if panel.rows], title)
    return draw_intervals(name, shown, "nats per token", described, caption)


def trajectory_chart(mixture_name: str, mixture: MixtureSummary, order: Sequence[str], name: str, points: int) -> Chart:
    """Weights over the steps of one seed's proxy, which must have logged some."""
    if (found := mixture.trajectory) is None:
        raise ValueError(f"{mixture_name} has no trajectory")
    steps, weights, means = np.array(found.steps, dtype=float), _columns(found.weight), _columns(found.mean_weight)
    uniform = 1 / max(1, len(weights or means))
    described = words.weights_in_words(steps, weights or means)
    caption = f"Domain weights over the steps, one proxy of {mixture_name} (the first seed that has one)."
    return figures.weight_chart(name, steps, weights, means, uniform, order, described, caption, points)


def _columns(values: Mapping[str, Sequence[float | None]]) -> dict[str, np.ndarray]:
    return {
        name: np.array([math.nan if value is None else value for value in column]) for name, column in values.items()
    }


def write_figures(summary: Path, folder: Path) -> list[Path]:
    """Write the charts of one comparison as SVG files for light pages; older ones of the same names are replaced.

    Args:
        summary: summary.json.
        folder: made where it is not there. Names of files begin with the comparison's.

    Returns:
        the files: differences with intervals, weights over the steps, and who helps whom, as far as they are there.

    Raises:
        ConfigError: the summary is no JSON object or cannot be read, or the folder cannot be written to.
        RunError: it is damaged.
    """
    drawings = _drawings(read_summary(summary))
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in drawings.items():
            temporary, file = folder / f"{name}.svg.tmp", folder / f"{name}.svg"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(file)
            written.append(file)
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        raise ConfigError(str(folder), problem, "name a folder that is yours") from None
    return written


def _drawings(summary: Summary) -> dict[str, str]:
    """SVG files by name, without its ending."""
    found: dict[str, str] = {}

    def add(kind: str, chart: Chart | None) -> None:
        if chart:
            name = re.sub(r"[^\w-]", "_", f"{summary.name}_{kind}")[:_FILE_NAME]
            found[name if name not in found else f"{name}_{len(found)}"] = _standalone(chart.wide, chart.description)

    add("differences", average_chart(summary, "a"))
    add("differences_of_domains", domain_chart(summary, "d"))
    for name, mixture in summary.mixtures.items():
        if mixture.trajectory:
            add(f"weights_{name}", trajectory_chart(name, mixture, summary.domains, "w", POINTS))
    for name, mixture in summary.mixtures.items():
        add(f"who_helps_whom_{name}", _heat_map(name, mixture))
    return found


def _heat_map(name: str, mixture: MixtureSummary) -> Chart | None:
    """The matrix of cosines as a drawing; None where there is none."""
    if mixture.gram_cosines is None:
        return None
    rows, columns, cosines = shown_cosines(mixture.gram_cosines, mixture)
    labels = [shorten(row, _LABEL_WIDTH) for row in rows]
    heads = [shorten(column, _LABEL_WIDTH) for column in columns]
    left, above = (20 + max(map(text_width, texts)) for texts in (labels, heads))
    width, height = left + _CELL * len(columns), above + 0.6 * _CELL * len(rows)
    with drawing("h", width, height) as figure:
        axes = figure.add_axes((left / width, 0, 1 - left / width, 1 - above / height))
        axes.set_axis_off()
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        for i, (row, shades) in enumerate(zip(rows, shades_of(rows, columns, cosines), strict=True)):
            axes.text(-0.2, i + 0.5, labels[i], ha="right", va="center_baseline")
            for j, shade in enumerate(shades):
                alpha = 0.55 * (shade or 0) / SHADES
                axes.add_patch(Rectangle((j, i), 1, 1, facecolor=LINE_COLORS[0], alpha=alpha, linewidth=0))
                text = "1" if row == columns[j] else signed_cosine(float(cosines[i, j]))
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center_baseline")
        for j, head in enumerate(heads):
            axes.text(j + 0.5, -0.3, head, ha="center", va="bottom", rotation=90)
        svg = as_svg(figure, "h", width, height)
    note = comparison_words.cosines_note(rows, columns, cosines)
    described = f"Cosines between gradients, mean over the proxies of {name}. {note}"
    return Chart(described, described, svg, svg)


def _standalone(svg: str, description: str) -> str:
    """A file of its own: the light page's colours instead of variables, a size, a font, and a background."""
    style = importlib.resources.files("doge_ds.reporting").joinpath("style.css").read_text()
    light = dict(re.findall(r"--([\w-]+): (#\w+);", style[: style.index("@media")]))
    svg = re.sub(r"var\(--([\w-]+)\)", lambda found: light.get(found[1], found[0]), svg)
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    if box is None:
        raise ValueError("the drawing has no viewBox")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{box[1]}" height="{box[2]}" {box[0]} role="img" '
        f'font-family="DejaVu Sans, Verdana, sans-serif">\n<title>{escape(description)}</title>\n'
        f'<rect width="100%" height="100%" fill="{light["paper"]}"/>'
    )
    text = re.sub(r"<svg [^>]*>", lambda _: head, svg, count=1) + "\n"
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)  # XML forbids them
