"""Pages as files: written in one piece or not at all, and never over what is no page of ours."""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from doge_ds.errors import ConfigError

# What a page of ours says of itself. 4096 bytes hold all that stands before it.
_GENERATOR = re.compile(rb'<meta name="generator" content="doge_ds [^"]*">')
_HEAD_BYTES = 4096


def check_output(output: Path, where: str) -> None:
    """Ask before the work whether a page can be written there.

    Args:
        where: what names it in an error, the option or the path.

    Raises:
        ConfigError: no file can be written there, or one is there that is no report of ours.
    """
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
        raise _cannot_be_written(where, error) from None
    if not is_ours:
        raise ConfigError(where, "exists and is no report of ours", "name another file")


def write_page(page: str, output: Path, where: str) -> None:
    """Write or replace the page, in one piece or not at all. Raises ConfigError where that fails."""
    temporary = output.with_name(f"{output.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_be_written(where, error) from None


def _cannot_be_written(where: str, error: OSError) -> ConfigError:
    return ConfigError(
        where, f"cannot be written ({error.strerror})", "name a file in a folder that is there and yours"
    )
