"""Text that every installation has: six domains for demonstrations, without a download.

    python        code of the standard library, docstrings cut out
    cpp           headers that torch brings along
    docstrings    long docstrings of the standard library and of installed packages, as prose
    yaml          YAML files of installed packages (most are lm-eval's tasks)
    descriptions  long descriptions of packages, and Markdown and reStructuredText files
    licences      licence texts of installed packages and of the system

Files are read in the order of a hash of their names: that spreads a capped domain over all packages, does not depend
on the file system, and leaves most of 300 MB of code unread. A document equal to an earlier one, in any domain, is
left out. This project's own files never take part.
"""

import ast
import email
import hashlib
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from doge_ds.errors import StoreError

LEAST_BYTES = 1_000_000  # of every domain

# Bytes of one document. A longer one would be too much of its domain: tables of operators, all of pydoc's topics.
_SHORTEST, _LONGEST = 200, 200_000
_DOCSTRING_AT_LEAST = 200  # characters
_LETTERS_OF_PROSE = 0.7  # share of letters and spaces: leaves out tables and lists of links

_NO_LETTERS = re.compile(r"[^\w ]+|[\d_]+")
_OWN = re.compile(r"(__editable__[\w.]*?)?doge[_-]ds(?![a-z])", re.IGNORECASE)  # this project, however it is installed
_NO_LIBRARY_CODE = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "encodings",
    "pydoc_data",
}
_GENERATED_OPERATORS = "ATen/ops/"  # three quarters of torch's headers, and all alike: one in ten will do
_LICENCE = re.compile(r"(licen[cs]es?|copying|copyright|notice)([-_.].*)?", re.IGNORECASE)
_LICENCE_SUFFIXES = {"", ".txt", ".md", ".rst", ".apache", ".bsd", ".mit"}

Files = dict[str, str]  # names below a root, which order and choose files, and paths. A Path each would take 3 s


def environment_documents(cap_bytes: int = 3_000_000) -> dict[str, list[str]]:
    """Documents of the six domains, each of at least 1 MB and at most `cap_bytes` bytes of UTF-8.

    The same on every call in one environment. Raises StoreError where an installation has too little.
    """
    library = _files_below(Path(sysconfig.get_path("stdlib")), _NO_LIBRARY_CODE)
    packages: Files = {}
    for root in ("purelib", "platlib"):
        packages |= _files_below(Path(sysconfig.get_path(root)), set())
    domains: dict[str, Iterable[str]] = {
        "python": _python(library),
        "cpp": _cpp(),
        "docstrings": _docstrings(library | packages),
        "yaml": _texts(_ordered(packages, lambda name: name.endswith((".yaml", ".yml")))),
        "descriptions": _descriptions(packages),
        "licences": _licences(packages),
    }
    seen: set[bytes] = set()
    return {name: _collect(name, texts, cap_bytes, seen) for name, texts in domains.items()}


def _collect(name: str, texts: Iterable[str], cap_bytes: int, seen: set[bytes]) -> list[str]:
    documents, total = [], 0
    for text in texts:
        raw = text.encode("utf-8", errors="replace")
        digest = hashlib.sha256(raw).digest()
        if digest in seen or not _SHORTEST <= len(raw) <= _LONGEST:
            continue
        if total + len(raw) > cap_bytes:
            break
        seen.add(digest)
        documents.append(raw.decode("utf-8"))
        total += len(raw)
    if total < LEAST_BYTES:
        raise StoreError(
            "environment",
            f"has {total:,} bytes in {len(documents)} documents for the domain {name}, fewer than {LEAST_BYTES:,}",
            "install the project with all its requirements, or give files with --input",
        )
    return documents


def _python(library: Files) -> Iterator[str]:
    for text in _texts(_ordered(library, lambda name: name.endswith(".py"))):
        if tree := _parse(text):
            yield _without_docstrings(text, tree)


def _cpp() -> Iterator[str]:
    found = importlib.util.find_spec("torch")  # finds it without importing it
    headers = _files_below(Path(found.origin).parent / "include", set()) if found and found.origin else {}
    some = {name: path for name, path in headers.items() if _GENERATED_OPERATORS not in name or _key(name)[0] % 10 == 0}
    return _texts(_ordered(some, lambda name: name.endswith((".h", ".hpp", ".cuh"))))


def _docstrings(code: Files) -> Iterator[str]:
    for text in _texts(_ordered(code, lambda name: name.endswith(".py"))):
        for _, docstring in _documented(_parse(text)):
            prose = inspect.cleandoc(str(docstring.value))
            if len(prose) >= _DOCSTRING_AT_LEAST and _is_prose(prose):
                yield prose + "\n"


def _descriptions(packages: Files) -> Iterator[str]:
    def wanted(name: str) -> bool:
        return name.endswith("/METADATA") or (name.lower().endswith((".md", ".rst")) and not _is_licence(name))

    for path in _ordered(packages, wanted):
        for text in _texts([path]):
            if path.name == "METADATA":
                fields = email.message_from_string(text)
                text = str(fields.get_payload()) or fields.get("Description", "")
            if _is_prose(text):
                yield text


def _licences(packages: Files) -> Iterator[str]:
    """The packages' licences first; then the system's, which Debian has with every package."""
    system: Files = {}
    for root in ("/usr/share/common-licenses", "/usr/share/licenses", "/usr/share/doc"):
        folder = Path(root)
        if folder.name == "doc":
            system |= {str(path): str(path) for path in folder.glob("*/copyright") if path.is_file()}
        else:
            system |= {path: path for path in _files_below(folder, set()).values()}
    return _texts(chain(_ordered(packages, _is_licence), _ordered(system, lambda name: True)))


def _is_licence(name: str) -> bool:
    last = name.rpartition("/")[2]
    is_named = _LICENCE.fullmatch(last) is not None or "/licenses/" in name
    return is_named and os.path.splitext(last)[1].lower() in _LICENCE_SUFFIXES


def _files_below(root: Path, left_out: set[str]) -> Files:
    """Files by their names below `root`, without caches, folders in `left_out` and this project's own."""
    found: Files = {}
    for folder, folders, files in os.walk(root):
        below = "" if folder == str(root) else folder[len(str(root)) + 1 :] + "/"
        folders[:] = [name for name in folders if name != "__pycache__" and name not in left_out]
        if not below:
            folders[:] = [name for name in folders if not _OWN.match(name)]
            files = [name for name in files if not _OWN.match(name)]
        found |= {below + name: f"{folder}/{name}" for name in files if not name.endswith((".pyc", ".so"))}
    return found


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).digest()


def _ordered(files: Files, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """The files whose names are wanted, in the order of the names' hashes."""
    chosen = [(_key(name), path) for name, path in files.items() if wanted(name)]
    return (Path(path) for _, path in sorted(chosen))


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    """The files that are UTF-8 text; what cannot be read is passed over, as nobody asked for it by name."""
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if "\0" not in text:
            yield text


def _is_prose(text: str) -> bool:
    return len(_NO_LETTERS.sub("", text)) >= _LETTERS_OF_PROSE * max(1, len(text))


def _parse(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: others' invalid escapes
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _documented(tree: ast.Module | None) -> list[tuple[list[ast.stmt], ast.Constant]]:
    """The docstrings of a module in the order of their lines, each with the body that it opens."""
    found: list[tuple[list[ast.stmt], ast.Constant]] = []
    bodies = [tree.body] if tree and tree.body else []
    while bodies:  # ast.walk would look into every expression as well: four times the time of parsing
        body = bodies.pop()
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            found.append((body, first.value))
        for statement in body:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                bodies.append(statement.body)
    return sorted(found, key=lambda pair: pair[1].lineno)


def _without_docstrings(text: str, tree: ast.Module) -> str:
    """The code with every docstring that has its lines to itself cut out; comments stay."""
    lines = text.encode().split(b"\n")  # ast counts columns in bytes
    for body, docstring in reversed(_documented(tree)):
        first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
        indent, rest = lines[first][: docstring.col_offset], lines[last][docstring.end_col_offset :]
        if not indent.strip() and not rest.strip():
            lines[first : last + 1] = [indent + b"pass"] if len(body) == 1 else []
    return b"\n".join(lines).decode().lstrip("\n")
