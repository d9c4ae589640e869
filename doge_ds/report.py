"""`doge-ds report RUN... -o report.html`: one self-contained HTML page about proxy and base runs.

The page needs no network and no JavaScript. It may be made while a run is under way, and says what is not finished.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from doge_ds.errors import ConfigError

_EXAMPLES = """examples:
  doge-ds report runs/proxy -o report.html
  doge-ds report runs/demo/proxy runs/demo/base_uniform runs/demo/base_doge -o report.html
  doge-ds report runs/uniform runs/doge --comparison comparison/comparison.json -o report.html

RUN is the --output of train_proxy.py or train_base.py. Runs must share one token store. Perplexities are those that
eval/run.py left in RUN/results.json, or else in RUN/hf/results.json; differences are to the first base with any."""

# What a page of ours says of itself. 4096 bytes hold all that stands before it.
_GENERATOR = re.compile(rb'<meta name="generator" content="doge_ds [^"]*">')
_HEAD_BYTES = 4096


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
    _check_output(output)
    # matplotlib and scipy take a second to load; --help and a mistyped path need not wait for them.
    from doge_ds.reporting.evaluations import read_comparison
    from doge_ds.reporting.page import render_page
    from doge_ds.reporting.run_files import read_runs

    page = render_page(read_runs(runs), datetime.now(UTC), read_comparison(comparison) if comparison else None)
    temporary = output.with_name(f"{output.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_be_written(output, error) from None


def _check_output(output: Path) -> None:
    """Raises ConfigError where no file can be written there, or one is there that is no report of ours."""
    where = f"-o {output}"
    if os.path.isdir(output):  # Path.is_dir raises OSError for a long name
        raise ConfigError(where, "is a directory", "name a file in it, like report.html")
    try:
        # Only writing shows whether one can: rights say little on network and read-only file systems.
        tempfile.TemporaryFile(dir=output.parent).close()
        if not os.path.lexists(output):
            return
        with output.open("rb") as stream:
            is_ours = _GENERATOR.search(stream.read(_HEAD_BYTES)) is not None
    except OSError as error:
        raise _cannot_be_written(output, error) from None
    if not is_ours:
        raise ConfigError(where, "exists and is no report of ours", "name another file")


def _cannot_be_written(output: Path, error: OSError) -> ConfigError:
    problem = f"cannot be written ({error.strerror})"
    return ConfigError(f"-o {output}", problem, "name a file in a folder that is there and yours")
