"""The pages of docs/experiments/ and what they are made of, docs/results/, from finished comparisons.

    doge-ds compare --config ds_configs/experiments/catalan.json ... --output runs/experiments --parallel 2
    python -m doge_ds.experiment_pages runs/experiments

Copies FOLDER/<name>/summary.json of every comparison in ds_configs/experiments/ that is there to
docs/results/<name>/summary.json, draws its charts beside it as SVG, and writes answers and tables into
docs/experiments/<name>.md between their marks. Without a folder the pages are only written again from docs/results/.
What stands outside of the marks is written by people.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from doge_ds.errors import ConfigError, DogeError, report
from doge_ds.reporting.cells import Cell, Table
from doge_ds.reporting.comparison_figures import write_figures
from doge_ds.reporting.comparison_tables import average_table, difference_table, worst_table
from doge_ds.reporting.comparison_words import answers, notes
from doge_ds.reporting.summaries import Summary, read_summary
from doge_ds.reporting.weight_tables import cost_tables, stability_table, weight_table

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATIONS, RESULTS, PAGES = Path("ds_configs/experiments"), Path("docs/results"), Path("docs/experiments")
_RESULTS = re.compile(r"(<!-- results [^>]*-->\n).*?(<!-- end of results -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy, draw, write; the exit status."""
    folders = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(folders) > 1 or any(word.startswith("-") for word in folders):
            raise ConfigError("command line", "takes one folder of doge-ds compare, or nothing", "give its --output")
        for folder in map(Path, folders):
            take_over(folder, ROOT)
        for path, text in pages(ROOT).items():
            (ROOT / path).write_text(text, encoding="utf-8")
            print(f"written: {path}")
    except DogeError as error:
        return report(error)
    return 0


def experiments(root: Path) -> list[str]:
    """Names of the comparisons in ds_configs/experiments/; the run configurations there have no mixtures."""
    return sorted(file.stem for file in (root / CONFIGURATIONS).glob("*.json") if '"mixtures"' in file.read_text())


def take_over(folder: Path, root: Path) -> None:
    """Summaries and charts of the comparisons that a folder has.

    Raises:
        DogeError: it has none of them, or one is damaged.
    """
    found = [name for name in experiments(root) if (folder / name / "summary.json").exists()]
    if not found:
        raise ConfigError(str(folder), "has no summary of an experiment", "run doge-ds compare with this --output")
    for name in found:
        read_summary(folder / name / "summary.json")
        place = root / RESULTS / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copyfile(folder / name / "summary.json", place / "summary.json")
        write_figures(place / "summary.json", place)


def pages(root: Path) -> dict[Path, str]:
    """What the pages have to say, by their paths below `root`.

    Raises:
        DogeError: an experiment without a page or marks in it, or a damaged summary.
    """
    found = {}
    for name in experiments(root):
        path = PAGES / f"{name}.md"
        try:
            text = (root / path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(str(path), f"cannot be read ({error.strerror})", "write the experiment's page") from None
        if len(_RESULTS.findall(text)) != 1:
            raise ConfigError(str(path), "has not one place for its results", "mark it as the other pages do")
        filling = results_text(root, name)
        found[path] = _RESULTS.sub(lambda match, filling=filling: f"{match[1]}{filling}{match[2]}", text)  # type: ignore[misc]
    return found


def results_text(root: Path, name: str) -> str:
    """Answers, tables and charts of one experiment as Markdown; one line where it has not been run."""
    file = root / RESULTS / name / "summary.json"
    if not file.exists():
        return "\nNot run yet.\n\n"
    summary = read_summary(file)
    parts = [_bullets(answers(summary)), *(markdown(table) for table in _tables(summary))]
    if limits := [*notes(summary), *_warnings(summary)]:
        parts.append(_bullets(limits))
    for chart in sorted(file.parent.glob("*.svg")):
        parts.append(f"![{_alternative(chart)}](../results/{name}/{chart.name})")
    return "\n" + "\n\n".join(parts) + "\n\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _tables(summary: Summary) -> Iterator[Table]:
    if summary.measured:
        yield from (average_table(summary, group) for group in summary.groups)
    for table in (difference_table(summary), worst_table(summary), weight_table(summary), stability_table(summary)):
        if table:
            yield table
    yield from cost_tables(summary)


def _warnings(summary: Summary) -> Iterator[str]:
    for name, mixture in summary.mixtures.items():
        yield from (f"{name}: {warning}" for warning in dict.fromkeys(mixture.warnings))


def markdown(table: Table) -> str:
    """A table as Markdown under its caption, folded rows too."""
    rows = [["", *table.columns], ["---", *("---:" for _ in table.columns)]]
    for row in [*table.rows, *table.folded]:
        header = f"{row.header} ({row.note})" if row.note else row.header
        rows.append([f"**{header}**" if row.is_summary else header, *map(_text, row.cells)])
    rows[0][0] = table.corner
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return f"{table.caption}:\n\n" + "\n".join(lines)


def _text(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.strong else cell.text


def _alternative(chart: Path) -> str:
    """The chart's own description, for those who cannot see it."""
    found = re.search(r"<title>(.*?)</title>", chart.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(found[1].split()).replace("[", "(").replace("]", ")") if found else chart.stem


if __name__ == "__main__":
    sys.exit(main())
