"""prepare: what goes in comes out, whatever the number of workers; what cannot be used is refused in one line."""

import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from doge_ds import cli
from doge_ds.data.prepare import prepare, store_table
from doge_ds.data.preparing.fates import HeldOutRule
from doge_ds.data.preparing.tokenizing import Shard
from doge_ds.data.tokenizer import load_tokenizer
from doge_ds.data.tokens import SPLITS, Split, TokenStore, file_sha256, folder_sha256
from doge_ds.errors import ConfigError, StoreError

WORDS = ["".join(random.Random(n).choices("abdegiklmnoprstuvxyz", k=2 + n % 7)) for n in range(400)]
WORDS += ["</s>", "\tdef", "return\n", "", "\u2581", "привет", "😀", "<0x0A>"] * 10


def make_documents(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 120))) + f" {seed} {n}\r\n" for n in range(count)]


DOCUMENTS = {"books": make_documents(1, 90), "code": make_documents(2, 60), "notes": make_documents(3, 40)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """books: a .jsonl and a .jsonl.gz; code: a folder with .txt below it, and a picture; notes: one .jsonl."""
    folder = tmp_path_factory.mktemp("raw")
    lines = [json.dumps({"text": text, "id": n}, ensure_ascii=n % 2 == 0) for n, text in enumerate(DOCUMENTS["books"])]
    (folder / "books.jsonl").write_text(
        "\n".join(lines[:50]) + '\n\n{"text": ""}\n{"text": " \\n"}\n', encoding="utf-8"
    )
    (folder / "more.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[50:]).encode()))
    for n, text in enumerate(DOCUMENTS["code"]):
        file = folder / "code" / f"part{n % 3}" / f"{n:03}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    (folder / "code" / "picture.png").write_bytes(b"\x89PNG")
    (folder / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS["notes"]))
    return folder


@pytest.fixture(scope="module")
def inputs(raw: Path) -> dict[str, list[Path]]:
    return {
        "books": [raw / "books.jsonl", raw / "more.jsonl.gz"],
        "code": [raw / "code"],
        "notes": [raw / "notes.jsonl"],
    }


@pytest.fixture(scope="module")
def store(inputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(inputs, tmp_path_factory.mktemp("made") / "store", train_tokenizer=500, workers=1)


def documents_of(store: TokenStore, domain: str, split: Split) -> list[str]:
    """What a store's file says, cut at its end-of-text tokens."""
    tokenizer = load_tokenizer(store.tokenizer_folder)
    ids = store.tokens(domain, split)
    ends = np.flatnonzero(ids == store.manifest.tokenizer.end_of_text_id)
    assert ends[-1] == len(ids) - 1
    return [tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends[:-1] + 1)]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("domain", DOCUMENTS)
def test_documents_come_back_exactly_and_stand_on_one_side(store: TokenStore, domain: str) -> None:
    found = {split: documents_of(store, domain, split) for split in SPLITS}
    assert sorted(found["train"] + found["valid"]) == sorted(DOCUMENTS[domain])
    assert not set(found["train"]) & set(found["valid"])
    assert found["train"]
    assert found["valid"]


def test_documents_keep_the_order_of_the_input(store: TokenStore) -> None:
    found = documents_of(store, "books", "train")
    assert found == [text for text in DOCUMENTS["books"] if text in set(found)]


@pytest.mark.parametrize("domain", DOCUMENTS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_manifest_counts_what_is_there(store: TokenStore, domain: str, split: Split) -> None:
    record = store.record(domain, split)
    texts = documents_of(store, domain, split)
    file = store.path / domain / f"{split}.bin"
    assert record.documents == len(texts)
    assert record.bytes == sum(len(text.encode()) for text in texts)
    assert record.tokens * 2 == file.stat().st_size
    assert record.sha256 == file_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_manifest_names_its_tokenizer_and_origin(store: TokenStore, inputs: dict[str, list[Path]]) -> None:
    assert store.manifest.dtype == "uint16"
    assert store.manifest.tokenizer.vocabulary_size == 500
    assert store.manifest.tokenizer.sha256 == folder_sha256(store.tokenizer_folder)
    assert store.manifest.domains["books"].sources == [str(path) for path in inputs["books"]]
    assert store.manifest.built_from["tokenizer"] == {"trained": 500, "bytes": 400_000}


def test_the_number_of_workers_changes_no_byte(
    store: TokenStore, inputs: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doge_ds.data.preparing.encoding._BATCH", 3000)  # several batches for each worker
    again = prepare(inputs, tmp_path / "again", train_tokenizer=500, workers=2)
    assert folder_bytes(again.path) == folder_bytes(store.path)
    assert again.fingerprint() == store.fingerprint()
    assert [file.name for file in tmp_path.iterdir()] == ["again"]


def copies_of_notes(folder: Path) -> dict[str, Path]:
    """The documents of notes once more, in every format."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS["notes"]).encode()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines[:500]) + zstandard.compress(lines[500:]))
    columns = pa.table({"text": DOCUMENTS["notes"], "other": [None] * len(DOCUMENTS["notes"])})
    parquet.write_table(columns, folder / "a.parquet", row_group_size=7)
    DatasetDict({"train": Dataset(columns), "test": Dataset(columns)}).save_to_disk(folder / "dataset")
    (folder / "txt").mkdir()
    for n, text in enumerate(DOCUMENTS["notes"]):
        (folder / "txt" / f"{n:03}.txt").write_bytes(text.encode())
    return {path.name: path for path in folder.iterdir()}


def test_the_format_changes_no_byte(
    store: TokenStore, inputs: dict[str, list[Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    copies = copies_of_notes(tmp_path / "raw")
    assert set(copies) == {"a.jsonl.gz", "a.jsonl.zst", "a.parquet", "dataset", "txt"}
    for name, path in copies.items():
        again = prepare({**inputs, "notes": [path]}, tmp_path / f"{name}.store", train_tokenizer=500, workers=1)
        assert again.fingerprint() == store.fingerprint(), name
        found, expected = folder_bytes(again.path), folder_bytes(store.path)
        assert {**found, "manifest.json": b""} == {**expected, "manifest.json": b""}, name  # it names the sources
        splits = {"notes: read the split train, skipped": name == "dataset", "code: skipped 1 files": True}
        shown = capfd.readouterr().err
        assert {words: words in shown for words in splits} == splits, name


def test_a_store_made_with_another_stores_tokenizer_has_the_same_tokens(
    store: TokenStore, inputs: dict[str, list[Path]], tmp_path: Path
) -> None:
    again = prepare(inputs, tmp_path / "again", tokenizer=store.tokenizer_folder, workers=1)
    assert again.fingerprint() == store.fingerprint()


def test_a_large_vocabulary_takes_four_bytes_a_token(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{f"word{n}": n for n in range(1, 65_536)}, "</s>": 65_536}
    large = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, "<unk>")), eos_token="</s>", unk_token="<unk>"
    )
    large.save_pretrained(str(tmp_path / "large"))
    store = prepare({"notes": inputs["notes"]}, tmp_path / "store", tokenizer=tmp_path / "large", workers=1)
    assert store.manifest.dtype == "uint32"
    assert store.manifest.tokenizer.vocabulary_size == 65_537
    assert set(store.tokens("notes", "train").tolist()) == {0, 65_536}


def test_the_table_has_a_line_for_each_domain(store: TokenStore) -> None:
    lines = store_table(store).splitlines()
    assert [line.split()[0] for line in lines] == ["domain", *DOCUMENTS]
    assert lines[1].split()[1] == "90"


# Text that cannot be used.


def lines(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def row_of_null(folder: Path) -> Path:
    parquet.write_table(pa.table({"text": ["a good row", None]}), folder / "a.parquet")
    return folder / "a.parquet"


def splits_without_train(folder: Path) -> Path:
    DatasetDict({"test": Dataset.from_dict({"text": ["x"]})}).save_to_disk(folder / "saved")
    return folder / "saved"


BAD = {
    "missing": (lambda folder: folder / "gone.jsonl", "gone.jsonl: does not exist"),
    "unknown type": (lines("a.json.zst", b"x"), "a.json.zst: is of an unknown type (.json.zst); if every line"),
    "bad JSON": (lines("a.jsonl", b'{"text": "x"}\n{"text": "cut'), "a.jsonl, line 2: is no JSON"),
    "null in a row": (row_of_null, "a.parquet, row 2: field 'text' is null, not a string"),
    "no split train": (splits_without_train, "saved: has no split 'train', only test"),
    "no zstd": (lines("a.jsonl.zst", b'{"text": "x"}\n'), "a.jsonl.zst: is no sound zstd file"),
    "one document": (lines("a.txt", b"only one"), "domain d: has only one document"),
    "copies": (lines("a.jsonl", b'{"text": "x"}\n' * 3), "domain d: has only 3 copies of one document"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_one_line_and_exit_2(
    case: str, store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = BAD[case]
    path = make(tmp_path)
    output = tmp_path / "made" / "store"
    command = ["prepare", "--input", f"d={path}", "--output", str(output), "--workers", "1", "--tokenizer"]
    assert cli.main([*command, str(store.tokenizer_folder)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1
    assert words in shown
    assert "Traceback" not in shown
    assert not output.exists()


# Options and the output folder.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"held_out": HeldOutRule(fraction=0.0)}, "--valid_fraction: 0.0 is no share"),
        ({"held_out": HeldOutRule(documents=3)}, "--train_tokenizer: needs to know what is held out before"),
        ({"shard": Shard(0, 2)}, "--shard: leaves each process a share of the text that a tokenizer is trained on"),
        ({"workers": 0}, "--workers: 0 is too few"),
        ({"train_tokenizer": -5}, "--train_tokenizer: -5 is no number of tokens"),
        ({"tokenizer": "gpt2"}, "either none or two"),
        ({"train_tokenizer": None}, "either none or two"),
        ({"inputs": {"a/b": ["x"]}}, "'a/b' cannot name a domain"),
        ({"inputs": {".a": ["x"]}}, "'.a' cannot name a domain"),
        ({"inputs": {"tokenizer": ["x"]}}, "'tokenizer' cannot name a domain"),
        ({"inputs": {"": ["x"]}}, "'' cannot name a domain"),
    ],
)
def test_options_out_of_range(options: dict[str, object], words: str, tmp_path: Path) -> None:
    arguments: dict[str, object] = {"inputs": {"a": ["x"]}, "output": tmp_path / "s", "train_tokenizer": 500, **options}
    with pytest.raises(ConfigError) as caught:
        prepare(**arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["store", "empty folder", "file"])
def test_an_existing_output_is_not_touched(
    kind: str, store: TokenStore, inputs: dict[str, list[Path]], tmp_path: Path
) -> None:
    output = store.path if kind == "store" else tmp_path / "there"
    if kind == "empty folder":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    before = folder_bytes(output.parent)
    with pytest.raises(StoreError, match="exists, and is not touched"):
        prepare(inputs, output, train_tokenizer=500)
    assert folder_bytes(output.parent) == before


def test_a_folder_that_cannot_be_made(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot be written"):
        prepare(inputs, tmp_path / "file" / "store", train_tokenizer=500, workers=1)


def test_a_vocabulary_too_large_leaves_nothing(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"a vocabulary of 90000: .*at most \d+"):
        prepare(inputs, tmp_path / "store", train_tokenizer=90_000, workers=1)
    assert not list(tmp_path.iterdir())


def word_tokenizer(folder: Path, left_out: str | None = None) -> Path:
    """Knows no word and is fast: a document is one <unk>, or nothing where it has no letter but the one left out."""
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1}, "<unk>"))
    if left_out:
        made.normalizer = normalizers.Replace(left_out, "")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>").save_pretrained(str(folder))
    return folder


def test_a_domain_that_yields_no_token(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "silent.jsonl").write_text("".join(json.dumps({"text": "q" * n}) + "\n" for n in range(1, 60)))
    tokenizer = word_tokenizer(tmp_path / "words", left_out="q")
    words = r"domain silent: yields no token but end-of-text ones from \d+ bytes of train text; take a tokenizer"
    with pytest.raises(StoreError, match=words):
        prepare({**inputs, "silent": [tmp_path / "silent.jsonl"]}, tmp_path / "s", tokenizer=tokenizer, workers=1)


def test_nul_bytes_are_text(store: TokenStore, tmp_path: Path) -> None:
    texts = ["a\0b\0", "\0", "c"]
    (tmp_path / "nul.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = prepare({"nul": [tmp_path / "nul.jsonl"]}, tmp_path / "s", tokenizer=store.tokenizer_folder, workers=1)
    assert made is not None
    assert sorted(documents_of(made, "nul", "train") + documents_of(made, "nul", "valid")) == sorted(texts)


def test_a_line_of_200_megabytes_fits_into_memory(tmp_path: Path) -> None:
    """In a process of its own, whose largest resident size is known: below 1.5 GB."""
    with (tmp_path / "long.jsonl").open("w") as stream:
        stream.write('{"text": "')
        for number in range(200):
            stream.write(f"{number} line of words \\n".ljust(1 << 20, "x"))
        stream.write('"}\n{"text": "short"}\n')
    program = (
        "import resource, sys, doge_ds.cli as c; status = c.main();"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "prepare", "--input", f"d={tmp_path / 'long.jsonl'}", "--workers", "1"]
    tokenizer = word_tokenizer(tmp_path / "words")
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "s"), "--tokenizer", str(tokenizer)],
        capture_output=True,
        text=True,
        check=True,
    )
    record = TokenStore(tmp_path / "s").manifest.domains["d"]
    assert record.train.bytes + record.valid.bytes > 200e6
    assert int(done.stdout.splitlines()[-1]) * 1024 < 1.5e9
