"""The documentation as tests read it: links, headings, code and commands of Markdown files."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Document:
    """One file, parsed.

    Attributes:
        links: targets of all links, as written.
        anchors: what a link may have after its #: GitHub's names of the headings.
        blocks: (language, text) of each code block; an indented one has the language "".
        code: pieces of inline code.
        prose: text that is no code.
    """

    links: list[str]
    anchors: set[str]
    blocks: list[tuple[str, str]]
    code: list[str]
    prose: list[str]


def read_document(text: str) -> Document:
    """Parse a file's text."""
    found = Document([], set(), [], [], [])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            found.anchors.add(_anchor(tokens[place + 1], found.anchors))
        elif token.type in ("fence", "code_block"):
            found.blocks.append((token.info.strip(), token.content))
        for child in token.children or []:
            if child.type == "link_open":
                found.links.append(str(child.attrs["href"]))
            elif child.type == "image":
                found.links.append(str(child.attrs["src"]))
            elif child.type in ("code_inline", "text"):
                (found.code if child.type == "code_inline" else found.prose).append(child.content)
    return found


def _anchor(heading: Token, taken: set[str]) -> str:
    """A heading's name on GitHub: small letters, hyphens for spaces, no punctuation; a number where it is taken."""
    words = "".join(child.content for child in heading.children or [] if child.type in ("text", "code_inline"))
    name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
    return next(full for number in range(100) if (full := f"{name}-{number}" if number else name) not in taken)


def commands(script: str) -> Iterator[str]:
    """The commands of a shell script: continued lines joined, here-documents kept, comments left out."""
    lines = iter(script.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = f"{line[:-1].rstrip()} {next(lines).lstrip()}"
        if end := re.search(r"<<'(\w+)'", line):
            while not line.endswith(f"\n{end[1]}"):
                line += "\n" + next(lines)
        else:
            line = re.sub(r"\s+#\s.*", "", line).strip()
        if line and not line.startswith("#"):
            yield line


def words_of(command: str) -> list[str]:
    """A command's words; of `name=$(command)` those of the command."""
    inner = re.fullmatch(r"\w+=\$\((.*)\)", command, re.DOTALL)
    return shlex.split(inner[1] if inner else command)
