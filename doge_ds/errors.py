"""The exceptions that users see: what is wrong, where, and what to do about it, in one line.

Anything else that escapes a program is a defect of ours and keeps its traceback.
"""

import difflib
import sys
from collections.abc import Iterable, Sequence

_LONGEST_PART = 1200  # characters; names come from files, and one may have as many as it likes


class DogeError(Exception):
    """A mistake that the user can mend.

    Attributes:
        exit_status: what the process ends with; 2 says that the input is wrong and nothing was changed.
    """

    exit_status = 2

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        """Args: the file, key or option at fault; what is wrong with it, with the value; what would do."""
        super().__init__(where, problem, remedy)  # all three, so that the error can be pickled by worker processes

    def __str__(self) -> str:
        where, problem, remedy = map(_in_one_line, self.args)
        return f"{where}: {problem}; {remedy}"


class ConfigError(DogeError):
    """A run configuration, a DeepSpeed configuration or a command line that cannot be used."""


class MixtureError(DogeError):
    """A mixture that is no distribution over the domains of the store."""


class StoreError(DogeError):
    """A token store, or text for one, that is missing, damaged or too small."""


class TokenizerError(DogeError):
    """A tokenizer that cannot be loaded or trained, or is not the one that the tokens were made with."""


class RunError(DogeError):
    """A run directory that cannot be continued or read."""


class SaveError(DogeError):
    """A checkpoint that could not be written."""

    exit_status = 1


class RankLostError(DogeError):
    """A process of the run that ended or hangs, so that the others cannot go on."""

    exit_status = 1


class ModelError(DogeError):
    """A model that cannot be built or loaded."""


class DivergedError(DogeError):
    """A run that came to its end without having learned anything."""

    exit_status = 1


def _in_one_line(part: str) -> str:
    """The text without line ends; what a terminal would obey, or could not print, spelt out; of a long one the ends."""
    text = " ".join(part.split())
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART // 2]} ... {text[-_LONGEST_PART // 4 :]}"


def nearest(name: str, candidates: Iterable[str], elsewhere: Sequence[str] = ()) -> str:
    """A remedy for a misspelt name: the closest candidate where there is one, else all of them.

    Args:
        elsewhere: where the name would be right as it is, like "doge.mu" for "mu".
    """
    names = sorted(candidates)
    meant = [*elsewhere, *difflib.get_close_matches(name, names, n=1)]
    return f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"known are: {', '.join(names)}"


def first_line(error: Exception) -> str:
    """What a library says of an error, without the lines that follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:; ")


def report(error: DogeError) -> int:
    """Print the one line on stderr; the exit status to end with."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_status
