"""The demonstration's domains: real text, enough of it, the same on every call."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from doge_ds.data.reading import environment
from doge_ds.data.reading.environment import environment_documents
from doge_ds.errors import StoreError

CAP = 1_200_000
SIX = ["python", "cpp", "docstrings", "yaml", "descriptions", "licences"]


@pytest.fixture(scope="module")
def domains() -> dict[str, list[str]]:
    return environment_documents(CAP)


def test_six_domains_of_a_megabyte_and_within_the_cap(domains: dict[str, list[str]]) -> None:
    assert list(domains) == SIX
    for texts in domains.values():
        assert 1_000_000 <= sum(len(text.encode()) for text in texts) <= CAP
        assert len(texts) > 20


def test_no_document_stands_twice(domains: dict[str, list[str]]) -> None:
    everything = [text for texts in domains.values() for text in texts]
    assert len(set(everything)) == len(everything)


def test_another_process_elsewhere_finds_the_same(domains: dict[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "doge.md").write_text("A file in the current directory. " * 50)
    code = (
        "import json, sys; from doge_ds.data.reading.environment import environment_documents;"
        f"found = environment_documents({CAP}); assert 'torch' not in sys.modules; json.dump(found, sys.stdout)"
    )
    variables = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, check=True)
    assert json.loads(done.stdout) == domains


def test_python_has_comments_and_no_docstrings(domains: dict[str, list[str]]) -> None:
    assert any("# " in text for text in domains["python"])
    with_docstring = 0
    for text in domains["python"]:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        with_docstring += sum(ast.get_docstring(node) is not None for node in nodes)
    # `def f(): "one line"` shares its line with code and stays.
    assert with_docstring < 50


def test_this_project_is_not_among_the_sources(domains: dict[str, list[str]]) -> None:
    readme = Path(environment.__file__).parents[3] / "README.md"
    own = [readme, *Path(environment.__file__).parents[2].rglob("*.py")]
    everything = "\n".join(text for texts in domains.values() for text in texts)
    for file in own:
        text = file.read_text(encoding="utf-8").strip()
        assert len(text) < 200 or text[:200] not in everything
    assert environment._OWN.match("doge_ds-0.1.0.dist-info")
    assert environment._OWN.match("__editable___doge_ds_0_1_0_finder.py")
    assert environment._OWN.match("__editable__.doge_ds-0.1.0.pth")
    assert not environment._OWN.match("dogeared")


def test_docstrings_are_cut_by_whole_lines() -> None:
    code = (
        '"""Module."""\n\nimport os  # kept\n\nclass A:\n    """Only this."""\n\n'
        'def f(x):\n    """Two\n    lines é."""\n    # kept too\n    return "text"\n\ndef g(): "same line"\n'
    )
    kept = environment._without_docstrings(code, ast.parse(code))
    assert kept == (
        'import os  # kept\n\nclass A:\n    pass\n\ndef f(x):\n    # kept too\n    return "text"\n\n'
        'def g(): "same line"\n'
    )


def test_too_little_names_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_files_below", lambda root, left_out: {})
    with pytest.raises(StoreError, match=r"environment: has 0 bytes in 0 documents for the domain python"):
        environment_documents(CAP)
