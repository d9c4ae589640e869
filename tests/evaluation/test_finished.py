"""Pieces of an evaluation that are finished."""

from pathlib import Path

import numpy as np
import pytest

from doge_ds.errors import ConfigError
from doge_ds.evaluation.finished import FinishedPieces
from doge_ds.evaluation.windows import DomainLosses

KEY = {"model": ["m", ["config.json", 3, 4]], "text": "0123", "stride": None}


def test_what_was_added_is_found_by_its_key_alone(tmp_path: Path) -> None:
    pieces = FinishedPieces(tmp_path / "unfinished")
    assert pieces.domain(KEY) is None
    assert pieces.task(KEY) is None
    losses = DomainLosses(np.array([1.5, 0.1 + 0.2]), np.array([3, 4]))
    pieces.add_domain(KEY, losses)
    pieces.add_task(KEY, {"acc": 0.5})
    again = FinishedPieces(tmp_path / "unfinished")
    found = again.domain(KEY)
    assert found is not None
    assert found.nats.tolist() == losses.nats.tolist()
    assert found.tokens.tolist() == [3, 4]
    assert again.task(KEY) == {"acc": 0.5}
    for changed in ({"text": "0124"}, {"stride": 8}, {"model": ["m", ["config.json", 3, 5]]}):
        assert again.domain(KEY | changed) is None
        assert again.task(KEY | changed) is None
    again.remove()
    assert not list(tmp_path.iterdir())
    again.remove()


def test_what_a_kill_left_half_written_is_not_found(tmp_path: Path) -> None:
    pieces = FinishedPieces(tmp_path)
    pieces.add_domain(KEY, DomainLosses(np.ones(1000), np.ones(1000, dtype=np.int64)))
    (file,) = tmp_path.iterdir()
    file.with_suffix(".tmp").write_bytes(file.read_bytes()[:100])
    file.unlink()
    assert pieces.domain(KEY) is None


def test_what_is_damaged_is_measured_again_and_no_pickle_is_read(tmp_path: Path) -> None:
    pieces = FinishedPieces(tmp_path / "pieces")
    pieces.add_domain(KEY, DomainLosses(np.ones(9), np.ones(9, dtype=np.int64)))
    pieces.add_task(KEY, {"acc": 0.5})
    arrays, task = (next((tmp_path / "pieces").glob(pattern)) for pattern in ("*.npz", "*.json"))
    whole = arrays.read_bytes()
    np.savez(arrays, nats=np.array([_Bomb(tmp_path / "went_off")], dtype=object), tokens=np.ones(1))
    for content in (arrays.read_bytes(), whole[:100], whole[:-30], b"", b"PK"):
        arrays.write_bytes(content)
        assert pieces.domain(KEY) is None
    for content in (b"", b'{"acc": 0.', b"[]", b"\xff", b"[" * 100_000):
        task.write_bytes(content)
        assert pieces.task(KEY) is None
    assert not (tmp_path / "went_off").exists()


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._mark,)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/pieces: cannot be made \(Not a directory\); name another --output"):
        FinishedPieces(tmp_path / "file/pieces").add_task(KEY, {})
