"""The command line: help at once, one line for a mistake, the exit status."""

import subprocess
import sys

import pytest

from doge_ds import cli
from doge_ds.data import prepare

HEAVY = ("torch", "transformers", "deepspeed", "numpy", "pydantic", "tokenizers", "sentencepiece")


def test_help_loads_no_library() -> None:
    code = (
        "import sys; from doge_ds.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit as end: print(end.code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "prepare" in done.stdout


def test_help_of_prepare_teaches_and_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from doge_ds.cli import main\n"
        "try: main(['prepare', '--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for word in ("--train_tokenizer", "--text_field", "examples:", "--input environment --output runs/demo/store"):
        assert word in done.stdout


def test_every_verb_has_a_module_with_arguments_and_run() -> None:
    import importlib

    for module_name, _ in cli.VERBS.values():
        module = importlib.import_module(module_name)
        assert callable(module.add_arguments)
        assert callable(module.run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepair"], "has no verb 'prepair'; did you mean 'prepare'?"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["prepare"], "the following arguments are required: --output"),
        (["prepare", "--input", "a=x", "--output", "o"], "tokenizer: either none or two are given; give"),
        (["prepare", "--input", "a=x", "--output", "o", "--train_tokenizer", "many"], "invalid int value: 'many'"),
        (["prepare", "--input", "x", "--output", "o", "--tokenizer", "t"], "'x' names no domain and path"),
        (["prepare", "--input", "a=", "--output", "o", "--tokenizer", "t"], "'a=' names no domain and path"),
        (["prepare", "--input", "environment", "a=x", "--output", "o", "--tokenizer", "t"], "'environment' names no"),
        (["prepare", "--input", "a b=x", "--output", "o", "--tokenizer", "t"], "'a b' cannot name a domain"),
        (["prepare", "--input", "a=x", "--output", "o", "--tokenizer", "/no/t"], "/no/t: no tokenizer can be loaded"),
        (["verify", "x" * 300], "cannot be read (File name too long)"),
        (["report", "x" * 300, "-o", "r.html"], "x: is not there; name the --output of"),
        (["export", "x" * 300, "-o", "hf"], "x: is no run directory"),
        (["mixture", "show", "x" * 300], "is no file and names no mixture"),
        (["prepare", "--input", "a=x", "--output", ".", "--tokenizer", "t"], ".: exists, and is not touched"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_an_interrupt_is_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", interrupt)
    assert cli.main(["prepare", "--input", "a=x", "--output", "o", "--tokenizer", "t"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(prepare, "prepare", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["prepare", "--input", "a=x", "--output", "o", "--tokenizer", "t"])
