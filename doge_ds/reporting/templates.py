"""Pages from templates: frame.html around each, macros.html for their tables and charts, style.css in their heads."""

import importlib.resources
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from doge_ds import __version__
from doge_ds.errors import ConfigError

LARGEST = 2_000_000  # bytes; what a mail still takes and a phone still opens


def fill_template(template: str, written: datetime, contents: Mapping[str, Any]) -> str:
    """A whole page; all that `contents` has is escaped, but for the drawings of charts, which are ours."""
    environment = Environment(
        loader=PackageLoader("doge_ds.reporting", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.globals["svg"] = Markup  # drawn by us, and matplotlib escapes the text in it
    style = Markup(importlib.resources.files("doge_ds.reporting").joinpath("style.css").read_text())
    frame = {"generator": f"doge_ds {__version__}", "written": written, "style": style}
    return environment.get_template(template).render({**contents, **frame})


def fitting_page(render: Callable[[int], str], what: str) -> str:
    """The page below 2 MB.

    Args:
        render: the page with one in so many points and CSV lines of what one page alone would have.
        what: is on it, for the error.

    Raises:
        ConfigError: there is so much of it that it does not fit, also when it is thinned.
    """
    for thinning in (1, 2, 4):
        page = render(thinning)
        if len(page.encode()) < LARGEST:
            return page
    raise ConfigError(what, f"make a page above {LARGEST // 10**6} MB", "report fewer of them together")


def _breakable(name: str) -> Markup:
    """The escaped name with places where a narrow screen may break it."""
    return Markup("<wbr>").join(re.findall(r"[^_./-]*[_./-]?", name)[:-1])
