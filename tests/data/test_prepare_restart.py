"""prepare, killed and started again, by one process or many: the same bytes, and nothing done twice that was done."""

import fcntl
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doge_ds import cli
from doge_ds.data.prepare import _remove_abandoned_folders, prepare
from doge_ds.data.preparing.fates import HeldOutRule
from doge_ds.data.preparing.tokenizer_training import train_sentencepiece
from doge_ds.data.preparing.tokenizing import Shard, read_shard
from doge_ds.data.reading.recipes import Recipe
from doge_ds.data.reading.units import Unit
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, StoreError

SMALL_PARTS = 30_000  # bytes, so that each input has several
DRAW = random.Random(3)
WORDS = ["".join(DRAW.choices("abdegiklmnoprstuvxyz", k=2 + n % 7)) for n in range(400)]


def documents(count: int) -> list[str]:
    return [" ".join(DRAW.choices(WORDS, k=DRAW.randint(5, 200))) for _ in range(count)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of books, one of code and some of notes; every tenth book is also code, some twice."""
    folder = tmp_path_factory.mktemp("raw")
    books = documents(600)
    for number in range(3):
        write_lines(folder / f"books/{number}.jsonl", books[200 * number : 200 * (number + 1)])
    write_lines(folder / "code.jsonl", [*documents(150), *books[::10], *books[::50], " "])
    for number, text in enumerate(documents(30)):
        (folder / "notes").mkdir(exist_ok=True)
        (folder / f"notes/{number:02}.txt").write_text(text)
    train_sentencepiece(books[:100], 450, folder / "tokenizer")
    return folder


def write_lines(file: Path, texts: list[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place in ("preparing.parts.PART_BYTES", "preparing.tokenizing.PART_BYTES", "reading.units.UNIT_BYTES"):
            patch.setattr(f"doge_ds.data.{place}", SMALL_PARTS)
        yield


def options(raw: Path) -> dict[str, Any]:
    inputs = {"books": [raw / "books"], "code": [raw / "code.jsonl"], "notes": [raw / "notes"]}
    return {"inputs": inputs, "tokenizer": raw / "tokenizer", "deduplicate": True, "held_out": HeldOutRule(tokens=3000)}


@pytest.fixture(scope="module")
def undisturbed(raw: Path, small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = prepare(output=tmp_path_factory.mktemp("made") / "store", workers=1, **options(raw))
    assert store is not None
    return content(store.path)


def content(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_large_parts_and_units_make_the_same_store(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("preparing.parts.PART_BYTES", "preparing.tokenizing.PART_BYTES", "reading.units.UNIT_BYTES"):
        monkeypatch.setattr(f"doge_ds.data.{place}", 1 << 26)
    prepare(output=tmp_path / "store", workers=1, **options(raw))
    assert content(tmp_path / "store") == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["store"], "parts are removed"


@pytest.mark.parametrize("count", [1, 3, 50])
def test_shards_in_any_order_and_a_merge(
    count: int, raw: Path, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in reversed(range(count)):
        assert prepare(output=tmp_path / "store", workers=1, shard=Shard(index, count), **options(raw)) is None
        assert not (tmp_path / "store").exists()
    assert "shard 0 of" in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store.parts").glob("*.index")}
    prepare(output=tmp_path / "store", workers=1, shard=Shard(0, 1), **options(raw))
    assert {file: file.stat().st_mtime_ns for file in before} == before, "nothing is left to do"
    prepare(output=tmp_path / "store", workers=1, **options(raw))
    assert content(tmp_path / "store") == undisturbed


def test_a_missing_shard_is_done_by_the_merge(raw: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    prepare(output=tmp_path / "store", workers=1, shard=Shard(1, 2), **options(raw))
    prepare(output=tmp_path / "store", workers=2, **options(raw))
    assert content(tmp_path / "store") == undisturbed


def start(raw: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    """`doge-ds prepare` in a session of its own, so that its workers can be found, and with small parts."""
    program = "import sys, doge_ds.cli as c, doge_ds.data.preparing.parts as p\n"
    program += "import doge_ds.data.preparing.tokenizing as t, doge_ds.data.reading.units as u\n"
    program += f"p.PART_BYTES = t.PART_BYTES = u.UNIT_BYTES = {SMALL_PARTS}\n"
    program += "if __name__ == '__main__': sys.exit(c.main())"
    inputs = [f"books={raw / 'books'}", f"code={raw / 'code.jsonl'}", f"notes={raw / 'notes'}"]
    command = [sys.executable, "-c", program, "prepare", "--input", *inputs, "--output", str(output)]
    command += ["--tokenizer", str(raw / "tokenizer"), "--deduplicate", "--valid_tokens", "3000", *more]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts background jobs with Ctrl-C ignored, and the tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for_parts(process: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.index"))) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def alive_in_session(session: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, found = stat.read_text().rpartition(") ")[2].split()[:4]
        except OSError:
            continue
        if int(found) == session and state != "Z":
            return True
    return False


def test_killed_and_started_again(raw: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Killed twice, interrupted once, each time when something more is done; then finished in this process."""
    output, parts = tmp_path / "store", tmp_path / "store.parts"
    for signal_number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        before = len(list(parts.glob("*.index")))
        process = start(raw, output, "--workers", "2")
        wait_for_parts(process, parts, before + 1)
        process.send_signal(signal_number)
        _, shown = process.communicate(timeout=30)
        deadline = time.monotonic() + 10
        while alive_in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive_in_session(process.pid)
        assert not output.exists()
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert shown.rstrip().endswith("interrupted")
    done = {file: file.stat().st_mtime_ns for file in parts.glob("*.index")}
    assert len(done) >= 3
    prepare(output=output, workers=1, shard=Shard(0, 1), **options(raw))
    assert {file: file.stat().st_mtime_ns for file in done} == done, "what was done is not done again"
    prepare(output=output, workers=1, **options(raw))
    assert content(output) == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_a_part_that_a_dying_machine_left_short_is_done_again(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    prepare(output=tmp_path / "store", workers=1, shard=Shard(0, 1), **options(raw))
    broken = sorted((tmp_path / "store.parts").glob("*.tokens"))
    broken[0].write_bytes(broken[0].read_bytes()[:-2])
    broken[1].with_suffix(".index").unlink()
    for empty in (broken[2], broken[2].with_suffix(".index")):
        empty.write_bytes(b"")
    next((tmp_path / "store.parts").glob("*.json")).write_text("{")
    prepare(output=tmp_path / "store", workers=1, **options(raw))
    assert content(tmp_path / "store") == undisturbed


def test_a_file_that_changed_meanwhile_is_read_again(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    prepare(output=tmp_path / "store", workers=1, shard=Shard(0, 1), **options(tmp_path / "raw"))
    write_lines(tmp_path / "raw/code.jsonl", documents(20))
    prepare(output=tmp_path / "store", workers=1, **options(tmp_path / "raw"))
    record = TokenStore(tmp_path / "store").manifest.domains["code"]
    assert record.train.documents + record.valid.documents == 20


def test_other_options_do_not_take_the_parts(raw: Path, tmp_path: Path) -> None:
    prepare(output=tmp_path / "store", workers=1, shard=Shard(0, 1), **options(raw))
    train_sentencepiece(documents(50), 420, tmp_path / "other")
    other = {**options(raw), "tokenizer": tmp_path / "other"}
    expected = prepare(output=tmp_path / "alone", workers=1, **other)
    found = prepare(output=tmp_path / "store", workers=1, **other)
    assert expected is not None
    assert found is not None
    assert found.fingerprint() == expected.fingerprint()


def test_a_folder_of_the_users_is_not_taken_for_parts(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "store.parts/mine.jsonl"
    write_lines(mine, ["one", "two"])
    for chosen in (options(raw), {**options(raw), "inputs": {"a": [mine.parent]}}):
        with pytest.raises(StoreError, match=r"store\.parts: is there already, and is no folder of unfinished parts"):
            prepare(output=tmp_path / "store", workers=1, **chosen)
        assert [file.name for file in mine.parent.iterdir()] == ["mine.jsonl"]


def test_what_a_killed_merge_left_is_removed_and_a_living_one_is_not(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    work = tmp_path / "store.parts"
    prepare(output=tmp_path / "store", workers=1, shard=Shard(0, 1), **options(raw))
    for name in ("dead", "alive"):
        (work / f"store.{name}").mkdir()
        (work / f"store.{name}/train.bin").write_bytes(b"x")
        (work / f"store.{name}.lock").touch()
    with (work / "store.alive.lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        _remove_abandoned_folders(work)
        assert sorted(path.name for path in work.glob("store.*")) == ["store.alive", "store.alive.lock"]
    prepare(output=tmp_path / "store", workers=1, **options(raw))
    assert content(tmp_path / "store") == undisturbed


def test_too_many_domains_are_refused(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doge_ds.data.preparing.tokenizing.MOST_DOMAINS", 5)
    lines = "".join(json.dumps({"text": f"text {n}", "id": f"n{n}"}) + "\n" for n in range(20))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text(lines)
    recipe = Recipe.model_validate({"sources": [{"dataset": str(tmp_path / "data"), "domain_field": "id"}]})
    with pytest.raises(ConfigError, match=r"names more than 5 domains; is domain_field the right one\?"):
        prepare(recipe, tmp_path / "store", tokenizer=raw / "tokenizer", workers=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing(
    raw: Path, undisturbed: dict[str, bytes], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_600_000)
    with pytest.raises(
        StoreError, match=r"store: cannot be written \(No space left on device\).*finished parts are kept"
    ):
        prepare(output=small_disk / "store", workers=1, **options(raw))
    assert not (small_disk / "store").exists()
    assert list((small_disk / "store.parts").glob("*.index"))
    assert not list((small_disk / "store.parts").glob(".*")), "nothing half written is left"
    ballast.unlink()
    prepare(output=small_disk / "store", workers=1, **options(raw))
    assert content(small_disk / "store") == undisturbed


# Copies and held-out documents.


def test_copies_are_dropped_over_domains_and_counted(raw: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    manifest = json.loads(undisturbed["manifest.json"])
    code = manifest["domains"]["code"]
    assert (code["copies_within"], code["copies_across"]) == (12, 60)
    assert code["train"]["documents"] + code["valid"]["documents"] == 150
    kept = prepare(output=tmp_path / "store", workers=1, **{**options(raw), "deduplicate": False})
    assert kept is not None
    record = kept.manifest.domains["code"]
    assert (record.copies_within, record.copies_across) == (12, 60)
    assert record.train.documents + record.valid.documents == 222


def test_held_out_tokens_are_as_many_as_asked(undisturbed: dict[str, bytes]) -> None:
    for name, record in json.loads(undisturbed["manifest.json"])["domains"].items():
        longest = 2000  # tokens of a document, at most
        assert 3000 <= record["valid"]["tokens"] < 3000 + longest, name


# The options.


@pytest.mark.parametrize("text", ["9/8", "8/8", "-1/8", "1", "a/b", "1/0", "1/2/3", ""])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is no i/n with i from 0 to n - 1; write it like 0/64"):
        read_shard(text)


def test_shards_part_the_units_evenly_by_size() -> None:
    units = [Unit(str(n), "", [], (n * 37) % 101, lambda: iter(())) for n in range(100)]
    dealt = [Shard(index, 7).of(units) for index in range(7)]
    assert sorted(int(unit.name) for share in dealt for unit in share) == list(range(100))
    sizes = [sum(unit.size for unit in share) for share in dealt]
    assert max(sizes) - min(sizes) < 2 * 101
    assert all([int(unit.name) for unit in share] == sorted(int(unit.name) for unit in share) for share in dealt)


def test_a_recipe_on_the_command_line(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "sources": [
            {"files": [str(raw / "books")], "domain": "books"},
            {"files": [str(raw / "notes")], "domain": "notes"},
        ],
        "tokenizer": str(raw / "tokenizer"),
        "valid_documents": 2,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert (
        cli.main(["prepare", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "store"), "--workers", "1"]) == 0
    )
    manifest = TokenStore(tmp_path / "store").manifest
    assert [record.valid.documents for record in manifest.domains.values()] == [2, 2]
    assert manifest.built_from["valid_documents"] == 2
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["books", "600"]
    assert cli.main(["prepare", str(tmp_path / "recipe.json"), "--input", "a=b", "--output", str(tmp_path / "s")]) == 2
    assert "names no input, or two" in capsys.readouterr().err
