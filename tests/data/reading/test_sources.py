"""Sources: order, and what is skipped."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from doge_ds.data.reading.sources import TextFiles, read_inputs
from doge_ds.errors import ConfigError, StoreError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with .txt, .jsonl and, below it, more; a picture; a file with another ending than it should have."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("b 1")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c.jsonl").write_text('{"text": "c 1"}\n\n{"text": ""}\n{"text": " \\n"}\n{"text": "c 2"}')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "z.json.gz").write_bytes(b"")
    return tmp_path


def test_folders_are_read_by_relative_path_and_count_what_they_skip(folder: Path) -> None:
    files = TextFiles([folder])
    assert list(files) == ["a", "b 1", "c 1", "c 2"]
    assert list(files) == ["a", "b 1", "c 1", "c 2"], "it can be read twice"
    assert files.skipped.files == [folder / "picture.png", folder / "z.json.gz"]
    assert files.skipped.notes() == [
        f"skipped 2 files of other types, such as {folder}/z.json.gz "
        "(if every line of it is a JSON object, rename it to .jsonl.gz)",
        "skipped 2 empty documents",
    ]


def test_paths_are_read_in_the_order_given(folder: Path) -> None:
    assert list(TextFiles([folder / "c.jsonl", folder / "b", folder / "a.txt"])) == ["c 1", "c 2", "b 1", "a"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/1.txt").write_text("1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/2.txt").write_text("2")
    (tmp_path / "in/a").symlink_to(tmp_path / "outside")
    (tmp_path / "in/round").symlink_to(tmp_path / "in")
    assert list(TextFiles([tmp_path / "in"])) == ["2", "1"]


def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be read \(File name too long\)"):
        list(TextFiles([tmp_path / ("x" * 300)]))


def test_a_folder_of_other_types_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(StoreError, match=r"holds no documents, but 1 files of .*picture\.png; give \.jsonl"):
        list(TextFiles([tmp_path]))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(StoreError, match=r"holds no documents, but 2 files of .*a\.json; if every line .* rename"):
        list(TextFiles([tmp_path]))


def test_a_folder_around_saved_datasets_says_what_to_do(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(StoreError, match=r"saved/\S+; give the folder that save_to_disk made"):
        list(TextFiles([tmp_path]))


def test_splits_without_train_are_named(tmp_path: Path) -> None:
    only = Dataset.from_dict({"text": ["x"]})
    DatasetDict({"part1": only, "part2": only}).save_to_disk(tmp_path / "saved")
    with pytest.raises(StoreError, match=r"saved: has no split 'train', only part1, part2; name one, as in .*/part1"):
        list(TextFiles([tmp_path / "saved"]))


def test_a_split_without_rows_is_in_nobodys_way(tmp_path: Path) -> None:
    some = Dataset.from_dict({"text": ["x"]})
    DatasetDict({"train": some, "test": some.select([])}).save_to_disk(tmp_path / "saved")
    assert list(TextFiles([tmp_path / "saved"])) == ["x"]
    with pytest.raises(StoreError, match="test: is no sound Hugging Face dataset"):  # datasets cannot load it either
        list(TextFiles([tmp_path / "saved" / "test"]))


def test_another_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in ("one", "two")))
    assert list(TextFiles([tmp_path / "a.jsonl"], "content")) == ["one", "two"]


def line_file(name: str, line: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(b'{"text": "a good line"}\n' + line + b"\n")
        return file

    return make


def cut_gzip(folder: Path) -> Path:
    file = folder / "cut.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "x"}\n' * 5000)[:-20])
    return file


def plain(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


BAD = {
    "missing": (lambda folder: folder / "gone.jsonl", "gone.jsonl: does not exist"),
    "empty folder": (empty_folder, "nothing: holds no documents"),
    "folder of other types": (lambda folder: plain("a.png", b"x")(folder).parent, "holds no documents"),
    "empty file": (plain("a.jsonl", b"\n"), "a.jsonl: holds no documents"),
    "empty text": (plain("a.txt", b" \n"), "a.txt: holds no documents"),
    "unknown suffix": (plain("a.csv", b"x"), "a.csv: is of an unknown type (.csv)"),
    "bad JSON": (line_file("a.jsonl", b'{"text": "cut'), "a.jsonl, line 2: is no JSON"),
    "no object": (line_file("a.jsonl", b'["text"]'), "a.jsonl, line 2: is a list, not a JSON object"),
    "no field": (line_file("a.jsonl", b'{"body": "x"}'), "a.jsonl, line 2: has no field 'text', only 'body'"),
    "null field": (line_file("a.jsonl", b'{"text": null}'), "a.jsonl, line 2: field 'text' is null, not a string"),
    "number": (line_file("a.jsonl", b'{"text": 5}'), "a.jsonl, line 2: field 'text' is a number"),
    "half a pair": (line_file("a.jsonl", b'{"text": "\\ud83d"}'), r"a.jsonl, line 2: holds \ud83d, half of"),
    "no UTF-8 in a line": (line_file("a.jsonl", b'{"text": "\xe9"}'), "a.jsonl, line 2: is no UTF-8 (byte 10: 0xe9)"),
    "no UTF-8 in text": (plain("a.txt", b"caf\xe9"), "a.txt: is no UTF-8 (byte 3: 0xe9)"),
    "cut gzip": (cut_gzip, "cut.jsonl.gz: is cut short"),
    "no gzip": (plain("a.jsonl.gz", b'{"text": "x"}\n'), "a.jsonl.gz: is no sound gzip file"),
    "zstd of another kind": (plain("a.json.zst", b"x"), "a.json.zst: is of an unknown type (.json.zst); if every line"),
    "no zstd": (plain("a.jsonl.zst", b'{"text": "x"}\n'), "a.jsonl.zst: is no sound zstd file"),
    "no Parquet": (plain("a.parquet", b"x" * 99), "a.parquet: is no sound Parquet file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_named_by_file_and_line(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    with pytest.raises(StoreError) as caught:
        list(TextFiles([make(tmp_path)]))
    assert words in str(caught.value)


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # not even root can read its first page
    with pytest.raises(StoreError, match=r"a\.txt: cannot be read"):
        list(TextFiles([tmp_path / "a.txt"]))


@pytest.mark.parametrize("item", ["books", "books=", ""])
def test_an_input_names_a_domain_and_a_path(item: str) -> None:
    with pytest.raises(ConfigError, match="names no domain and path; write DOMAIN=PATH"):
        read_inputs(["a=b", item])


def test_inputs_of_one_domain_are_gathered() -> None:
    assert read_inputs(["a=1", "b=x=y", "a=2"]) == {"a": ["1", "2"], "b": ["x=y"]}
    assert read_inputs(["environment"]) == "environment"
