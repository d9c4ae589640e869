"""`doge-ds tokenizer`: a folder of the kind, size and mixture asked for; mistakes are one line."""

import json
import random
from pathlib import Path

import pytest

from doge_ds import cli
from doge_ds.data.tokenizer import load_tokenizer, vocabulary_size
from doge_ds.data.tokens import TokenStore, folder_sha256
from doge_ds.mixture import Mixture

ALPHABETS = {"latin": "abcdefghij", "greek": "αβγδεζηθικ"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of other letters, so that a vocabulary tells what it was trained on."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, (name, alphabet) in enumerate(ALPHABETS.items()):
        draw = random.Random(seed)
        words = ["".join(draw.choices(alphabet, k=2 + n % 6)) for n in range(300)]
        lines = (json.dumps({"text": " ".join(draw.choices(words, k=60))}) + "\n" for _ in range(400))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def command(raw: Path, output: Path, *more: str) -> list[str]:
    inputs = [f"{name}={raw / name}.jsonl" for name in ALPHABETS]
    return ["tokenizer", "--input", *inputs, "--output", str(output), "--vocabulary", "600", *more]


def letters(folder: Path, name: str) -> int:
    """Pieces of more than one letter of this alphabet."""
    pieces = load_tokenizer(folder).get_vocab()
    return sum(len(piece.strip()) > 1 and set(piece.strip()) <= set(ALPHABETS[name]) for piece in pieces)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "byte_level_bpe"])
def test_a_folder_that_prepare_takes(kind: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(raw, tmp_path / "t", "--kind", kind)) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"{tmp_path / 't'}: 600 tokens"
    assert [line.split()[0] for line in shown.out.splitlines()[:3]] == ["domain", "latin", "greek"]
    assert 1 < float(shown.out.splitlines()[1].split()[-1]) < 5
    assert "training on" in shown.err
    assert vocabulary_size(load_tokenizer(tmp_path / "t")) == 600
    arguments = [
        "prepare",
        "--input",
        f"latin={raw / 'latin.jsonl'}",
        "--output",
        str(tmp_path / "s"),
        "--workers",
        "1",
    ]
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "t")]) == 0
    assert TokenStore(tmp_path / "s").manifest.tokenizer.vocabulary_size == 600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s", "t"]


def test_the_mixture_decides_what_the_vocabulary_is_made_of(raw: Path, tmp_path: Path) -> None:
    Mixture(domains={"latin": 0.75, "greek": 0.25}).write(tmp_path / "m.json")
    budget = ("--bytes", "100000")
    for name, more in {
        "even": (),
        "latin": ("--mixture", str(tmp_path / "m.json")),
        "greek": ("--weights", "latin=0.25", "greek=0.75"),
        "none": ("--weights", "latin=1", "greek=0"),
    }.items():
        assert cli.main(command(raw, tmp_path / name, *budget, *more)) == 0
    greek = {name: letters(tmp_path / name, "greek") for name in ("even", "latin", "greek", "none")}
    assert greek["greek"] > greek["even"] > greek["latin"] > greek["none"] == 0


def test_budget_and_seed(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = []
    for name, more in {
        "a": ("--sentences", "100"),
        "again": ("--sentences", "100"),
        "b": ("--sentences", "100", "--seed", "1"),
        "c": ("--bytes", "20000"),
    }.items():
        assert cli.main(command(raw, tmp_path / name, *more)) == 0
        hashes.append(folder_sha256(tmp_path / name))
        err = capsys.readouterr().err
        assert ("in 100 documents" if name != "c" else "training on 0.0 MB") in err
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--weights", "latin=0.5", "greak=0.5"],
            "has a weight for 'greak', which has no input; did you mean 'greek'?",
        ),
        (["--weights", "latin=1"], "has no weight for 'greek'; add it (0 is allowed), or leave its input out"),
        (["--weights", "latin=0.5", "greek=0.6"], "--weights: the weights sum to 1.1"),
        (["--weights", "latin=0.5", "greek"], "--weights: 'greek' is no DOMAIN=WEIGHT; write it like wiki=0.8"),
        (["--mixture", "no.json"], "no.json: cannot be read"),
        (["--bytes", "0"], "--bytes: 0 is too few"),
        (["--sentences", "-1"], "--sentences: -1 is too few"),
        (["--valid_fraction", "1"], "--valid_fraction: 1.0 is no share"),
        (["--vocabulary", "90"], "a vocabulary of 90: does not hold the text's letters and 256 bytes; take at least"),
        (["--kind", "word"], "invalid choice: 'word'"),
        (["--input", "other=gone.jsonl"], "gone.jsonl: does not exist"),
    ],
)
def test_mistakes(more: list[str], words: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(raw, tmp_path / "t", *more)) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1
    assert words in shown
    assert not list(tmp_path.iterdir())


def test_a_small_weight_draws_no_document_rather_than_all(raw: Path, tmp_path: Path) -> None:
    assert cli.main(command(raw, tmp_path / "t", "--sentences", "100", "--weights", "latin=0.996", "greek=0.004")) == 0
    assert letters(tmp_path / "t", "greek") == 0


def test_a_folder_that_cannot_be_made(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main(command(raw, tmp_path / "file" / "t")) == 2
    assert "t: cannot be made in" in capsys.readouterr().err


def test_an_existing_folder_is_not_touched(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").mkdir()
    assert cli.main(command(raw, tmp_path / "t")) == 2
    assert "t: exists, and is not touched; choose another --output" in capsys.readouterr().err
    assert not list((tmp_path / "t").iterdir())
