"""`doge-ds report RUN... -o report.html`: one self-contained HTML page about proxy and base runs.

The page needs no network and no JavaScript. It may be made while a run is under way, and says what is not finished.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from doge_ds.reporting.page_files import check_output, write_page

_EXAMPLES = """examples:
  doge-ds report runs/proxy -o report.html
  doge-ds report runs/demo/proxy runs/demo/base_uniform runs/demo/base_doge -o report.html
  doge-ds report runs/uniform runs/doge --comparison comparison/comparison.json -o report.html

RUN is the --output of train_proxy.py or train_base.py. Runs must share one token store. Perplexities are those that
eval/run.py left in RUN/results.json, or else in RUN/hf/results.json; differences are to the first base with any."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds report`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, finished or not")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the page; an older report is replaced"
    )
    parser.add_argument(
        "--comparison",
        type=Path,
        metavar="FILE",
        help="comparison.json of eval/run.py with several models: differences with intervals",
    )


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds report`: write the page and print its path."""
    write_report(arguments.runs, arguments.output, arguments.comparison)
    print(f"written: {arguments.output}")
    return 0


def write_report(runs: Sequence[Path], output: Path, comparison: Path | None = None) -> None:
    """Write or replace the page, in one piece or not at all.

    Args:
        runs: run directories, proxies and bases mixed, each once.
        output: the HTML file.
        comparison: comparison.json of eval/run.py, where there is one.

    Raises:
        ConfigError: the output cannot be written there, or is there and no report of ours; or a config.json is damaged.
        RunError: a run or the comparison cannot be read, or the runs do not belong together.
        MixtureError: a mixture.json is damaged.
    """
    where = f"-o {output}"
    check_output(output, where)
    # matplotlib and scipy take a second to load; --help and a mistyped path need not wait for them.
    from doge_ds.reporting.evaluations import read_comparison
    from doge_ds.reporting.page import render_page
    from doge_ds.reporting.run_files import read_runs

    page = render_page(read_runs(runs), datetime.now(UTC), read_comparison(comparison) if comparison else None)
    write_page(page, output, where)
