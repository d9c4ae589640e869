"""Readers: the same documents out of every format; damage and missing text are named by file and line or row."""

import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from doge_ds.data.reading.columns import is_saved_dataset
from doge_ds.data.reading.readers import is_readable, look_alike, read_file, type_of
from doge_ds.data.reading.sources import TextFiles
from doge_ds.errors import StoreError

ROOT = Path(__file__).resolve().parents[3]
SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"  # a zstd frame that holds no data


def json_lines(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()


def zstd_frames(content: bytes, size: int = 1 << 20) -> bytes:
    """Frames of `size` bytes of content, so that lines go across them."""
    compress = zstandard.ZstdCompressor().compress
    return b"".join(compress(content[at : at + size]) for at in range(0, len(content), size))


def table(texts: Sequence[str], kind: pa.DataType) -> pa.Table:
    return pa.table({"id": pa.array(range(len(texts))), "text": pa.array(texts, pa.string()).cast(kind)})


def write_text_folder(folder: Path, texts: Sequence[str]) -> Path:
    (folder / "texts").mkdir()
    for n, text in enumerate(texts):
        (folder / "texts" / f"{n:05}.txt").write_bytes(text.encode())
    return folder / "texts"


def write_bytes(name: str, content: Callable[[Sequence[str]], bytes]) -> Callable[[Path, Sequence[str]], Path]:
    def write(folder: Path, texts: Sequence[str]) -> Path:
        (folder / name).write_bytes(content(texts))
        return folder / name

    return write


def write_parquet(kind: pa.DataType, **options: object) -> Callable[[Path, Sequence[str]], Path]:
    def write(folder: Path, texts: Sequence[str]) -> Path:
        parquet.write_table(table(texts, kind), folder / "a.parquet", **options)
        return folder / "a.parquet"

    return write


def write_dataset(folder: Path, texts: Sequence[str]) -> Path:
    Dataset(table(texts, pa.string())).save_to_disk(folder / "saved", num_shards=min(3, len(texts)))
    return folder / "saved"


def write_dataset_splits(folder: Path, texts: Sequence[str]) -> Path:
    splits = {"test": Dataset.from_dict({"text": ["not this"]}), "train": Dataset(table(texts, pa.large_string()))}
    DatasetDict(splits).save_to_disk(folder / "saved")
    return folder / "saved"


FORMATS = {
    "jsonl": write_bytes("a.jsonl", json_lines),
    "gzip": write_bytes("a.jsonl.gz", lambda texts: gzip.compress(json_lines(texts))),
    "zstd": write_bytes("a.jsonl.zst", lambda texts: zstd_frames(json_lines(texts))),
    "zstd frames": write_bytes("a.jsonl.zst", lambda texts: SKIPPABLE + zstd_frames(json_lines(texts), 7) + SKIPPABLE),
    "txt": write_text_folder,
    "parquet": write_parquet(pa.string(), row_group_size=3),
    "parquet large_string": write_parquet(pa.large_string(), compression="zstd", write_page_checksum=True),
    "parquet string_view": write_parquet(pa.string_view(), compression="none"),
    "parquet dictionary": write_parquet(pa.dictionary(pa.int32(), pa.string()), row_group_size=2),
    "dataset": write_dataset,
    "dataset splits": write_dataset_splits,
}


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12))
def test_any_text_comes_back_exactly(form: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = FORMATS[form](tmp_path_factory.mktemp("any"), texts)
    assert list(TextFiles([path])) == texts


@pytest.mark.parametrize("form", FORMATS)
def test_many_rows_keep_their_order(form: str, tmp_path: Path) -> None:
    texts = [f"document {n} " + "é" * (n % 9) for n in range(300)]  # more than are read at a time
    assert list(TextFiles([FORMATS[form](tmp_path, texts)])) == texts


def test_a_line_longer_than_many_reads(tmp_path: Path) -> None:
    texts = ["long " * 400_000, "short", "x" * 3_000_000]
    assert list(read_file(FORMATS["zstd frames"](tmp_path, texts[:2]), "text")) == texts[:2]
    assert list(read_file(FORMATS["zstd"](tmp_path, texts), "text")) == texts


def test_a_zstd_file_made_with_a_long_window(tmp_path: Path) -> None:
    long = zstandard.ZstdCompressionParameters.from_level(3, window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=long).compressobj()
    content = json_lines(["a document"] * 20)
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(content) + compressor.flush())
    assert list(read_file(tmp_path / "a.jsonl.zst", "text")) == ["a document"] * 20


def test_libraries_are_imported_only_where_they_are_needed(tmp_path: Path) -> None:
    check = (
        f"import sys; from pathlib import Path; from doge_ds.data.reading.sources import TextFiles; "
        f"list(TextFiles([Path({str(FORMATS['jsonl'](tmp_path, ['x']))!r})])); "
        "sys.exit(any(name in sys.modules for name in ('pyarrow', 'datasets', 'zstandard')))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


# Fields inside of fields.

NESTED = [{"id": n, "meta": {"page": {"text": f"inner {n}"}, "a.b": f"dotted {n}"}, "a.b": f"b {n}"} for n in range(3)]


def write_nested(form: str, folder: Path) -> Path:
    path = folder / {"jsonl": "a.jsonl", "parquet": "a.parquet", "dataset": "saved"}[form]
    if form == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in NESTED))
    elif form == "parquet":
        parquet.write_table(pa.Table.from_pylist(NESTED), path)
    else:
        Dataset.from_list(NESTED).save_to_disk(path)
    return path


@pytest.mark.parametrize("form", ["jsonl", "parquet", "dataset"])
@pytest.mark.parametrize(("name", "word"), [("meta.page.text", "inner"), ("a.b", "b"), ("meta.a.b", "dotted")])
def test_a_field_inside_of_a_field(form: str, name: str, word: str, tmp_path: Path) -> None:
    assert list(TextFiles([write_nested(form, tmp_path)], name)) == [f"{word} {n}" for n in range(3)]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "dataset"])
@pytest.mark.parametrize("name", ["text", "meta.text", "id.text", "meta.page.text.x", ""])
def test_a_missing_field_is_answered_with_those_there_are(form: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        list(TextFiles([write_nested(form, tmp_path)], name))
    assert f"has no field {name!r}, only 'id', 'meta.page.text', 'meta.a.b', 'a.b'" in message_in_order(caught.value)


def message_in_order(error: StoreError) -> str:
    """Datasets and pyarrow may sort the members of a struct."""
    return str(error).replace("'meta.a.b', 'meta.page.text'", "'meta.page.text', 'meta.a.b'")


def test_a_long_list_of_fields_is_cut(tmp_path: Path) -> None:
    parquet.write_table(pa.table({f"column{n}": ["x"] for n in range(20)}), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match=r"only 'column0', .*'column15' and 4 more; name it with --text_field"):
        list(read_file(tmp_path / "a.parquet", "text"))


# Rows without a text.

ROWS = {
    "null": (pa.array(["a", None, "c"]), "row 2: field 'text' is null, not a string"),
    "all null": (pa.nulls(3), "row 1: field 'text' is null"),
    "null in a dictionary": (pa.array(["a", None]).dictionary_encode(), "row 2: field 'text' is null"),
    "number": (pa.array([1, 2]), "row 1: field 'text' is a number, not a string"),
    "list": (pa.array([["a"], ["b"]]), "row 1: field 'text' is a list"),
    "object": (pa.array([{"body": "x"}]), "row 1: field 'text' is an object"),
    "bytes": (pa.array([b"a"]), "row 1: field 'text' is of type bytes"),
    "late": (pa.array([*map(str, range(400)), None]), "row 401: field 'text' is null"),
    "no UTF-8": (
        pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 2, 4)), pa.py_buffer(b"abx\xe9")),
        "row 2: is no UTF-8 (byte 1: 0xe9)",
    ),
}


@pytest.mark.parametrize("form", ["parquet", "dataset"])
@pytest.mark.parametrize("case", ROWS)
def test_a_row_without_text_is_named(form: str, case: str, tmp_path: Path) -> None:
    column, words = ROWS[case]
    path = tmp_path / "a.parquet"
    if form == "parquet":
        parquet.write_table(pa.table({"text": column}), path)
    else:
        path = tmp_path / "saved"
        Dataset(pa.table({"text": column})).save_to_disk(path)
    with pytest.raises(StoreError) as caught:
        list(TextFiles([path]))
    assert str(caught.value).startswith(f"{path}, {words}")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_null_outside_is_a_null_inside(form: str, tmp_path: Path) -> None:
    records = [{"meta": {"text": "good"}}, {"meta": None}]
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(StoreError, match=r"(row|line) 2: field 'meta\.text' is null"):
        list(read_file(tmp_path / f"a.{form}", "meta.text"))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match=r"a\.parquet: has several columns named 'text'"):
        list(read_file(tmp_path / "a.parquet", "text"))


# Damage.

LINES = json_lines([f"some words {n * n}" for n in range(5000)])
ZSTD = zstd_frames(LINES, 50_000)
CHECKED = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)


def parquet_bytes(folder: Path) -> tuple[bytes, int]:
    """A Parquet file, and where in it is a byte of text."""
    made = write_parquet(pa.string(), write_page_checksum=True)(folder, [f"some words {n}" for n in range(3000)])
    text = parquet.read_metadata(made).row_group(0).column(1)
    return made.read_bytes(), text.data_page_offset + text.total_compressed_size // 4


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.zst", ZSTD[:-1], "is cut short: its last zstd frame has no end; copy the file again"),
        ("a.jsonl.zst", ZSTD[: len(ZSTD) // 2], "is cut short: its last zstd frame has no end"),
        ("a.jsonl.zst", ZSTD[:3], "is cut short: its last zstd frame has no end"),
        ("a.jsonl.zst", ZSTD + b"more than that", "is no sound zstd file (Unknown frame descriptor)"),
        ("a.jsonl.zst", gzip.compress(LINES), "is no sound zstd file ("),
        ("a.jsonl.zst", flip(CHECKED, len(CHECKED) // 2), "is no sound zstd file ("),
        ("a.jsonl.gz", ZSTD, "is no sound gzip file (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], "is cut short: its gzip stream has no end"),
        ("a.parquet", b"", "is no sound Parquet file (Parquet file size is 0 bytes)"),
        ("a.parquet", LINES, "is no sound Parquet file (Parquet magic bytes not found"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        list(read_file(tmp_path / name, "text"))
    assert str(caught.value).startswith(f"{tmp_path / name}: {words}")


@pytest.mark.parametrize("damage", ["cut", "page", "footer"])
def test_a_damaged_parquet_file_is_named(damage: str, tmp_path: Path) -> None:
    whole, inside = parquet_bytes(tmp_path)
    content = {"cut": whole[:-20], "page": flip(whole, inside), "footer": whole[:-12] + b"\xff" * 4 + whole[-8:]}[
        damage
    ]
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.parquet: is no sound Parquet file \(.+\); copy or write the file again"):
        list(read_file(tmp_path / "a.parquet", "text"))


def write_state(folder: Path, content: str) -> None:
    (folder / "state.json").write_text(content)


def misplace_an_offset(folder: Path) -> None:
    """Of texts of 10 bytes each. Without a look at the offsets, C++ ends the process here."""
    file = next(folder.glob("*.arrow"))
    content = file.read_bytes()
    damaged = content.replace(struct.pack("<3i", 10, 20, 30), struct.pack("<3i", 10, -(1 << 30), 30))
    assert damaged != content
    file.write_bytes(damaged)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no arrow file": lambda folder: next(folder.glob("*.arrow")).unlink(),
    "cut": lambda folder: next(folder.glob("*.arrow")).write_bytes(next(folder.glob("*.arrow")).read_bytes()[:-200]),
    "offset": misplace_an_offset,
    "no arrow": lambda folder: next(folder.glob("*.arrow")).write_bytes(b"hello " * 100),
    "no JSON": lambda folder: write_state(folder, "{"),
    "empty state": lambda folder: write_state(folder, "{}"),
    "unknown type": lambda folder: (folder / "dataset_info.json").write_text('{"features": {"text": {"_type": "X"}}}'),
    "no object": lambda folder: (folder / "dataset_info.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_dataset_is_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    Dataset.from_dict({"text": ["some words"] * 100}).save_to_disk(folder)
    DAMAGE[damage](folder)
    with pytest.raises(StoreError) as caught:
        list(TextFiles([folder]))
    shown = str(caught.value)
    assert shown.startswith(f"{folder}: is no sound Hugging Face dataset (")
    assert shown.endswith("; copy or save it again")


# Splits and types.


def test_of_several_splits_train_is_read_and_the_others_can_be_named(tmp_path: Path) -> None:
    folder = write_dataset_splits(tmp_path, ["one", "two"])
    files = TextFiles([folder])
    assert list(files) == ["one", "two"]
    assert files.skipped.notes() == [f"read the split train, skipped {folder / 'test'}"]
    assert list(TextFiles([folder / "test", folder / "train"])) == ["not this", "one", "two"]
    assert is_saved_dataset(folder)
    assert is_saved_dataset(folder / "test")
    assert not is_saved_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("a.json", ".json", "rename it to .jsonl"),
        ("a.v1.json", ".json", "rename it to .jsonl"),
        ("a.ndjson", ".ndjson", "rename it to .jsonl"),
        ("a.json.gz", ".json.gz", "rename it to .jsonl.gz"),
        ("a.ndjson.zst", ".ndjson.zst", "rename it to .jsonl.zst"),
        ("a.txt.zst", ".txt.zst", "decompress it; only JSON lines may be compressed"),
        ("a.parquet.gz", ".parquet.gz", "decompress it"),
        ("a.tar.zst", ".tar.zst", "unpack it"),
        ("a.jsonl.xz", ".jsonl.xz", "compress it with gzip or zstd"),
        ("a.csv", ".csv", "convert it"),
        ("data-00000-of-00001.arrow", ".arrow", "the folder that save_to_disk made"),
        ("dataset_info.json", ".json", "the folder that save_to_disk made"),
    ],
)
def test_look_alikes_are_told_what_to_do(name: str, kind: str, words: str) -> None:
    assert not is_readable(Path(name))
    assert type_of(Path(name)) == kind
    assert words in str(look_alike(Path(name)))


def test_a_picture_is_no_look_alike() -> None:
    assert look_alike(Path("picture.png")) is None
    assert type_of(Path("LICENCE")) == "no suffix"
