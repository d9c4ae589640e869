"""What command lines share: complaints, types, and all that `train_proxy.py` and `train_base.py` take."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, cast

from doge_ds.errors import ConfigError
from doge_ds.training.time_limit import read_time_limit


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors of ours, so that they are printed once and not once a rank."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError("command line", message, "see --help")


def positive(text: str) -> int:
    """A type for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def natural(text: str) -> int:
    """A type for argparse: 0 and up."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


# argparse names the type in its message.
positive.__name__ = "positive whole number"
natural.__name__ = "whole number"


def add_settings(parser: argparse._ActionsContainer, text: str) -> None:
    """`--set`, of a parser or a group; `text` is its help."""
    parser.add_argument(
        "--set", dest="settings", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text
    )


@dataclass(frozen=True)
class RunArguments:
    """What a run is started with."""

    config: Path
    settings: list[str]
    output: Path
    resume: Literal["auto", "never"]
    mixture: str | None = None
    reference: str | None = None
    change_mixture: bool = False
    change_batch: bool = False
    time_limit: float | None = None


def read_run_arguments(description: str, arguments: Sequence[str] | None, needs_mixture: bool = False) -> RunArguments:
    """Parse a program's arguments (None: the process's own). Raises ConfigError for those that cannot be understood."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="run configuration, see ds_configs/runs/")
    if needs_mixture:
        parser.add_argument(
            "--mixture",
            help="a mixture.json or schedule, uniform, natural (token counts), or a published mixture such as "
            "doge_slimpajama; by default the configuration's",
        )
        parser.add_argument(
            "--change_mixture",
            action="store_true",
            help="where the directory holds an unfinished run on another mixture: go on with this one from its latest "
            "checkpoint on",
        )
    else:
        parser.add_argument(
            "--reference",
            metavar="HF_DIR",
            help='of a run with "method": "doremi": the reference model, a Hugging Face folder or a run of '
            "train_base.py; by default doremi.reference",
        )
    parser.add_argument(
        "--change_batch",
        action="store_true",
        help="where the directory holds an unfinished run with another number of sequences a step: go on with this one "
        "from its latest checkpoint on",
    )
    add_settings(parser, "settings that replace the file's, like training.steps=100 or doge.target='[\"books\"]'")
    parser.add_argument("--output", type=Path, help="run directory; by default runs/<the configuration's name>")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto: continue the run that the directory holds; never: refuse to",
    )
    parser.add_argument(
        "--time_limit",
        metavar="[D-]H:MM:SS",
        help="wall-clock time that this process has: it saves before the time is over and ends with status 75; the "
        "same command continues",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    found = parser.parse_args(arguments)
    return RunArguments(
        config=found.config,
        settings=found.settings,
        output=found.output or Path("runs") / found.config.stem,
        resume=cast(Literal["auto", "never"], found.resume),
        mixture=found.mixture if needs_mixture else None,
        reference=None if needs_mixture else found.reference,
        change_mixture=needs_mixture and found.change_mixture,
        change_batch=found.change_batch,
        time_limit=read_time_limit(found.time_limit),
    )
