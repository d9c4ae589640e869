"""`doge-ds VERB`: a table of verbs, each a module with `add_arguments(parser)` and `run(arguments)`.

A verb's module is imported when the verb is asked for, so that `doge-ds --help` is there at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from doge_ds import __version__
from doge_ds.command_line import Parser
from doge_ds.errors import ConfigError, DogeError, nearest, report

VERBS = {
    "prepare": ("doge_ds.data.prepare", "tokenize raw text, domain by domain, into a token store"),
    "tokenizer": ("doge_ds.data.tokenizer_command", "train a tokenizer on a mixture of domains"),
    "verify": ("doge_ds.data.verify", "read a token store again and name whatever is damaged"),
    "plan": ("doge_ds.plan", "say what a run reads, computes, holds and writes, before it starts"),
    "mixture": ("doge_ds.mixture_commands", "show, compare, average, change and export mixtures; schedules"),
    "compare": ("doge_ds.compare", "run proxies, bases and evaluations of several mixtures and seeds; one report"),
    "report": ("doge_ds.report", "write one HTML page about proxy and base runs"),
    "export": ("doge_ds.export", "write a base run's checkpoint as a Hugging Face folder"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. The exit status: 0 done, 2 the input is wrong, 130 interrupted."""
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except DogeError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        return _about(arguments or ["--help"])
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError("command line", f"has no verb {verb!r}", nearest(verb, VERBS))
    module_name, help_line = VERBS[verb]
    module = importlib.import_module(module_name)
    parser = _parser(f"doge-ds {verb}", help_line[0].upper() + help_line[1:] + ".")
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args(rest))
    return status


def _about(options: list[str]) -> int:
    """--help and --version, which end the process; anything else is an error."""
    parser = _parser("doge-ds", "Learn the mixture of text domains to pretrain on.")
    parser.usage = "doge-ds VERB [options]"
    parser.epilog = "\n".join(
        ["verbs:", *(f"  {verb:<10} {line}" for verb, (_, line) in VERBS.items()), "", "doge-ds VERB --help says more."]
    )
    parser.add_argument("--version", action="version", version=f"doge-ds {__version__}")
    parser.parse_args(options)
    raise ConfigError("command line", "names no verb", f"known are: {', '.join(VERBS)}")


def _parser(program: str, description: str) -> Parser:
    return Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


if __name__ == "__main__":
    sys.exit(main())
