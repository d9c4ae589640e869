"""verify: a sound store is described; every kind of damage is named, whatever else is damaged."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_ds import cli
from doge_ds.data.prepare import prepare
from doge_ds.data.tokens import TokenStore, file_sha256
from doge_ds.errors import DogeError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    draw = random.Random(0)
    words = ["".join(draw.choices("abdegiklmnoprstuvxyz", k=2 + n % 7)) for n in range(300)]
    for name in ("books", "code"):
        texts = [" ".join(draw.choices(words, k=draw.randint(5, 120))) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    inputs = {name: [folder / f"{name}.jsonl"] for name in ("books", "code")}
    prepare(inputs, folder / "store", train_tokenizer=400, workers=1)
    return folder / "store"


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "store")
    return tmp_path / "store"


def edit_manifest(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = store / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def cut(store: Path) -> None:
    file = store / "books/train.bin"
    file.write_bytes(file.read_bytes()[:-2])


def flip(store: Path) -> None:
    raw = bytearray((store / "books/train.bin").read_bytes())
    raw[100] ^= 1
    (store / "books/train.bin").write_bytes(raw)


def swap(store: Path) -> None:
    """Exchange two files and the counts that would tell at once."""
    first, second = (store / name / "train.bin" for name in ("books", "code"))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])

    def change(manifest: dict[str, Any]) -> None:
        records = manifest["domains"]["books"]["train"], manifest["domains"]["code"]["train"]
        records[0]["tokens"], records[1]["tokens"] = records[1]["tokens"], records[0]["tokens"]

    edit_manifest(store, change)


def link(store: Path) -> None:
    shutil.move(store / "books/train.bin", store.parent / "elsewhere.bin")
    (store / "books/train.bin").symlink_to(store.parent / "elsewhere.bin")


def another_tokenizer(store: Path) -> None:
    with (store / "tokenizer/tokenizer_config.json").open("a") as stream:
        stream.write("\n")


def forget_a_domain(store: Path) -> None:
    edit_manifest(store, lambda manifest: manifest["domains"].pop("code"))


def small_vocabulary(store: Path) -> None:
    edit_manifest(store, lambda manifest: manifest["tokenizer"].update(vocabulary_size=100))


def end_beyond_the_vocabulary(store: Path) -> None:
    edit_manifest(store, lambda manifest: manifest["tokenizer"].update(end_of_text_id=10**6))


def vocabulary_beyond_the_dtype(store: Path) -> None:
    edit_manifest(store, lambda manifest: manifest["tokenizer"].update(vocabulary_size=2**16 + 1))


def more_documents(store: Path) -> None:
    edit_manifest(store, lambda manifest: manifest["domains"]["books"]["train"].update(documents=7))


def leave_the_store(store: Path) -> None:
    edit_manifest(store, lambda manifest: manifest["domains"].update({"../x": manifest["domains"].pop("code")}))


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut": (cut, ["books/train.bin: has"]),
    "flipped": (flip, ["books/train.bin: was changed: its sha256 differs"]),
    "swapped": (
        swap,
        ["books/train.bin: holds what code/train.bin should", "code/train.bin: holds what books/train.bin"],
    ),
    "missing": (lambda store: (store / "code/valid.bin").unlink(), ["code/valid.bin: is missing"]),
    "link": (link, ["books/train.bin: is a link out of the store, to"]),
    "tokenizer": (another_tokenizer, ["tokenizer: is not the tokenizer that the manifest names"]),
    "forgotten domain": (forget_a_domain, ["code: stands in the store, but the manifest has no such domain"]),
    "vocabulary": (small_vocabulary, ["train.bin: has the token"] * 2 + ["valid.bin: has the token"] * 2),
    "end of text": (end_beyond_the_vocabulary, ["end_of_text_id 1000000 is not among"]),
    "dtype": (vocabulary_beyond_the_dtype, ["uint16 cannot hold 65537 tokens"]),
    "documents": (more_documents, ["books/train.bin: has 5", "documents where the manifest says 7"]),
    "name": (
        leave_the_store,
        ["manifest.json: is no manifest of ours: domains: Value error, '../x' is no domain name"],
    ),
    "no manifest": (lambda store: (store / "manifest.json").unlink(), ["store: is no token store"]),
    "two at once": (
        lambda store: (flip(store), (store / "code/valid.bin").unlink()),
        ["books/train.bin: was", "code/valid"],
    ),
}


def test_a_sound_store_is_described(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(store)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["domain", "books", "code"]
    assert shown[1].split()[1] == "60"


def test_a_link_to_the_whole_store_is_sound(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    assert cli.main(["verify", str(tmp_path / "link")]) == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = DAMAGES[damage]
    make(store)
    assert cli.main(["verify", str(store)]) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert shown.out == ""
    for word in words:
        assert any(word in line for line in errors), errors
    assert len(errors) <= len(words)


@pytest.mark.parametrize("damage", ["cut", "missing", "link", "tokenizer", "name", "no manifest"])
def test_opening_a_store_finds_what_can_be_found_without_reading_it(damage: str, store: Path) -> None:
    DAMAGES[damage][0](store)
    with pytest.raises(DogeError, match=DAMAGES[damage][1][0].partition(":")[2].strip()):
        TokenStore(store)


def test_sound_files_have_the_hash_that_the_manifest_says(original: Path) -> None:
    manifest = json.loads((original / "manifest.json").read_text())
    for name, record in manifest["domains"].items():
        assert record["train"]["sha256"] == file_sha256(original / name / "train.bin")
