"""`doge-ds report`: the file that it writes, and the one line for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from doge_ds import __version__, cli
from tests.reporting.run_directories import edit_metrics, make_base, make_proxy


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    mixture = {"python": 0.5, "prose": 0.25, "yaml": 0.25}
    paths = [make_proxy(tmp_path / "proxy"), make_base(tmp_path / "base", mixture, {"python": 3.0})]
    return [str(path) for path in paths]


def test_writes_one_page_and_prints_its_path(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert cli.main(["report", *runs, "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"written: {output}\n"
    page = output.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert f'<meta name="generator" content="doge_ds {__version__}">' in page
    assert not list(tmp_path.glob("*.tmp"))


def test_a_report_of_ours_is_replaced_also_an_older_versions(runs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert cli.main(["report", runs[0], "-o", str(output)]) == 0
    output.write_text(output.read_text().replace(f"doge_ds {__version__}", "doge_ds 0.0.1"))
    assert cli.main(["report", *runs, "-o", str(output)]) == 0
    assert f"doge_ds {__version__}" in output.read_text()


@pytest.mark.parametrize(
    "content", ["", "notes", '<html><meta name="generator" content="Writer"></html>', "doge_ds\n" * 9]
)
def test_what_is_no_report_of_ours_is_not_replaced(
    runs: list[str], tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "thesis.html"
    output.write_text(content)
    assert cli.main(["report", *runs, "-o", str(output)]) == 2
    assert capsys.readouterr().err == (f"error: -o {output}: exists and is no report of ours; name another file\n")
    assert output.read_text() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{place}/proxy", "-o", "{place}/no/where.html"], "where.html: cannot be written (No such file or directory)"),
        (["{place}/proxy", "-o", "{place}"], "is a directory; name a file in it"),
        (["{place}/proxy", "-o", "{place}/proxy/run.json/r.html"], "cannot be written (Not a directory)"),
        (["{place}/proxy", "{place}/base/../proxy", "-o", "{place}/r.html"], "proxy: is named twice"),
        (["{place}/nowhere", "-o", "{place}/r.html"], "nowhere: is not there"),
        (["{place}", "-o", "{place}/r.html"], "is no run directory: it has no run.json and no config.json"),
        (["{place}/damaged", "-o", "{place}/r.html"], "metrics.jsonl, line 2: step 3 follows step 10"),
        (["{place}/proxy", "{place}/other", "-o", "{place}/r.html"], "its token store fingerprint is ffffffffffffffff"),
        (["-o", "{place}/r.html"], "the following arguments are required: RUN"),
        (["{place}/proxy"], "the following arguments are required: -o/--output"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2_and_nothing_is_written(
    runs: list[str], tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_metrics(make_proxy(tmp_path / "damaged"), 1, step=3)
    make_proxy(tmp_path / "other", store="f" * 16)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["report", *(argument.format(place=tmp_path) for argument in arguments)]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_cannot_be_finished_leaves_the_old_one(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert cli.main(["report", runs[0], "-o", str(output)]) == 0
    old = output.read_bytes()
    (tmp_path / "report.html.tmp").mkdir()  # where the new page is to be written first
    assert cli.main(["report", *runs, "-o", str(output)]) == 2
    assert "cannot be written (Is a directory)" in capsys.readouterr().err
    assert output.read_bytes() == old


def test_help_is_there_at_once() -> None:
    heavy = ("matplotlib", "scipy", "jinja2", "numpy", "pydantic", "torch")
    code = (
        "import sys; from doge_ds.cli import main\n"
        "try: main(['report', '--help'])\n"
        f"except SystemExit: print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "doge-ds report runs/demo/proxy runs/demo/base_uniform" in done.stdout
