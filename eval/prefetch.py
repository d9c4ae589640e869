"""Bring the datasets of few-shot tasks to a folder, on a machine with internet, for those without.

    python eval/prefetch.py --suite doge6 --to data/tasks                         on a login node
    python eval/run.py --model runs/base --suite doge6 --data_root data/tasks     on a compute node

The folder has the layout of the Hugging Face hub, data/tasks/allenai/sciq/... What is there whole is not downloaded
again, and what was broken off goes on; at the end every dataset is loaded from the folder as proof. Needs no GPU.

Exit status: 0 done, 2 the input is wrong or the hub cannot be reached.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from doge_ds.command_line import Parser
from doge_ds.errors import ConfigError, DogeError, report


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    try:
        options = _parser().parse_args(arguments)
        names = [*([options.suite] if options.suite else []), *options.tasks]
        if not names:
            raise ConfigError("command line", "names no tasks", "give --suite doge6, or --tasks")
        from doge_ds.evaluation.prefetching import prefetch  # lm-eval takes seconds: --help need not wait
        from doge_ds.evaluation.tasks import choose_tasks

        prefetch(choose_tasks(names, options.include_path), options.to, options.include_path)
    except DogeError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(
        f"then, without internet: python eval/run.py --model MODEL --tasks {' '.join(names)} --data_root {options.to}"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--suite", help="a named set of tasks: doge6")
    parser.add_argument("--tasks", nargs="+", default=[], help="lm-eval tasks by name")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder; made if it is not there")
    parser.add_argument("--include_path", type=Path, help="folder with task definitions of your own, lm-eval's YAML")
    return parser


if __name__ == "__main__":
    sys.exit(main())
