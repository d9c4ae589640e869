"""Which checkpoints are whole, which are read, which are kept: decided from files alone."""

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from doge_ds.errors import RunError
from doge_ds.training.checkpoint_files import (
    Checkpoint,
    choose_checkpoint,
    make_whole,
    prune,
    read_checkpoint,
    refuse_what_others_may_have_written,
    set_aside,
    step_folder,
    temporary,
    universal,
)


def write(checkpoints: Path, step: int, ranks: int = 2) -> Path:
    """A whole checkpoint of small tensors, as a run leaves it."""
    folder = step_folder(checkpoints, step)
    written = temporary(folder)
    written.mkdir(parents=True)
    for rank in range(ranks):
        torch.save({"weight": torch.arange(1000.0) + rank}, written / f"{rank}_optim_states.pt")
    make_whole(written, ranks)
    return folder


def chosen(checkpoints: Path) -> int | None:
    found, _ = choose_checkpoint(checkpoints)
    return found.step if found else None


def test_a_folder_gets_its_name_when_it_is_whole_and_latest_after_that(tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path / "checkpoints") == (None, [])
    folder = write(tmp_path, 6)
    assert folder.name == "step00000006"
    assert (tmp_path / "latest").read_text() == folder.name
    assert sorted(path.name for path in folder.iterdir()) == [
        "0_optim_states.pt",
        "1_optim_states.pt",
        "whole.json",
    ]
    found = read_checkpoint(folder)
    assert isinstance(found, Checkpoint)
    assert (found.step, found.ranks, found.files) == (6, 2, ["0_optim_states.pt", "1_optim_states.pt"])
    assert found.find_damage() is None


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


class Fuse:
    """Kills before or after the n-th call of the functions that it is put around."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def around(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            self._burn()
            found = function(*arguments, **named)
            self._burn()
            return found

        return call

    def _burn(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each of the calls by which a save changes the file system; of a new step, and of one again."""
    calls = [(Path, "rename"), (Path, "replace"), (Path, "write_text"), (Path, "mkdir"), (os, "fsync")]
    calls.append((shutil, "rmtree"))
    chosen_after, kills = set(), 0
    for moment, step in itertools.product(range(60), (12, 18)):
        checkpoints = tmp_path / f"{moment}_{step}"
        write(checkpoints, 6)
        write(checkpoints, 12)
        fuse = Fuse(moment)
        with monkeypatch.context() as patch:
            for owner, name in calls:
                patch.setattr(owner, name, fuse.around(getattr(owner, name)))
            try:
                prune(checkpoints, write(checkpoints, step), keep=1)
            except Killed:
                kills += 1
        found, _ = choose_checkpoint(checkpoints)
        assert found is not None
        assert found.find_damage() is None
        assert fuse.left == 0 or found.step == step
        chosen_after.add(found.step)
        prune(checkpoints, write(checkpoints, 24), keep=1)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step00000024"]
    assert chosen_after == {6, 12, 18}
    assert 40 < kills < 118  # every moment of a save is among them: the last ones ended before the fuse did


def cut_off(folder: Path) -> str:
    os.truncate(folder / "1_optim_states.pt", 100)
    return "has 100 of "


def lose_a_file(folder: Path) -> str:
    (folder / "0_optim_states.pt").unlink()
    return "lacks 0_optim_states.pt"


def lose_the_record(folder: Path) -> str:
    (folder / "whole.json").unlink()
    return "has no whole.json"


def damage_the_record(folder: Path) -> str:
    (folder / "whole.json").write_text('{"ranks": 2')
    return "has a damaged whole.json"


def lead_out_of_the_folder(folder: Path) -> str:
    (folder / "whole.json").write_text('{"ranks": 2, "files": {"../step00000006/0_optim_states.pt": 5}}')
    return "has a damaged whole.json"


def name_nothing(folder: Path) -> str:
    (folder / "whole.json").write_text('{"ranks": 2, "files": {"0\\u0000.pt": 5}}')
    return "has a damaged whole.json"


HARMS = [cut_off, lose_a_file, lose_the_record, damage_the_record, lead_out_of_the_folder, name_nothing]


@pytest.mark.parametrize("harm", HARMS)
def test_the_one_before_is_taken_with_a_line_that_says_why(tmp_path: Path, harm: object) -> None:
    write(tmp_path, 6)
    newest = write(tmp_path, 12)
    assert chosen(tmp_path) == 12
    problem = harm(newest)  # type: ignore[operator]
    found, passed_over = choose_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 6
    assert len(passed_over) == 1
    assert f"{newest} {problem}" in passed_over[0]
    assert passed_over[0].endswith("; continues from step00000006")


def test_where_none_is_whole_nothing_is_started_over(tmp_path: Path) -> None:
    for step in (6, 12):
        lose_a_file(write(tmp_path, step))
    with pytest.raises(
        RunError,
        match=r"has no checkpoint that is whole: .*12 lacks 0_optim_states.pt, .*6 lacks 0_optim_states.pt; re",
    ):
        choose_checkpoint(tmp_path)
    assert len(list(tmp_path.glob("step*"))) == 2


def test_a_first_save_that_was_cut_short_is_no_checkpoint(tmp_path: Path) -> None:
    temporary(step_folder(tmp_path, 6)).mkdir()
    assert choose_checkpoint(tmp_path) == (None, [])


@pytest.mark.parametrize(
    ("pointer", "step"), [("step00000006", 6), ("step00000012", 12), ("", 12), ("step00000099", 12), ("\xff", 12)]
)
def test_one_may_go_back_by_writing_an_older_name_into_latest(tmp_path: Path, pointer: str, step: int) -> None:
    write(tmp_path, 6)
    write(tmp_path, 12)
    (tmp_path / "latest").write_bytes(pointer.encode("latin-1"))
    assert choose_checkpoint(tmp_path)[1] == []
    assert chosen(tmp_path) == step
    (tmp_path / "latest").unlink()
    assert chosen(tmp_path) == 12


def test_a_latest_that_is_gone_with_nothing_older_is_told(tmp_path: Path) -> None:
    write(tmp_path, 12)
    (tmp_path / "latest").write_text("step00000003")
    found, passed_over = choose_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, len(passed_over)) == (12, 1)
    assert (
        "latest names step 3, and neither it nor an older one is there; continues from step00000012" in passed_over[0]
    )


def test_any_flipped_bit_of_a_tensor_is_found_and_by_the_rank_whose_part_it_is(tmp_path: Path) -> None:
    draw = random.Random(3)
    folder = write(tmp_path, 6)
    file = folder / "1_optim_states.pt"
    good = file.read_bytes()
    values = torch.arange(1000.0).add(1).numpy().tobytes()
    start = good.index(values)
    for _ in range(40):
        place = start + draw.randrange(len(values))
        file.write_bytes(good[:place] + bytes([good[place] ^ (1 << draw.randrange(8))]) + good[place + 1 :])
        found = read_checkpoint(folder)
        assert isinstance(found, Checkpoint)
        assert found.find_damage(0, 2) is None
        assert "1_optim_states.pt is damaged in " in str(found.find_damage(1, 2))
    file.write_bytes(bytes(len(good)))
    assert "1_optim_states.pt cannot be read (File is not a zip file)" in str(read_checkpoint(folder).find_damage())  # type: ignore[union-attr]
    aside = set_aside(folder)
    assert aside.name == "step00000006.broken"
    with pytest.raises(RunError, match=r"has no checkpoint that is whole: step00000006.broken; restore"):
        chosen(tmp_path)  # nothing is started over
    aside.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="has lost its checkpoints: only latest is there"):
        chosen(tmp_path)
    (tmp_path / "elsewhere").rename(aside)
    shutil.copytree(aside, folder)
    assert set_aside(folder).name == "step00000006.broken1"


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_checkpoint(write(tmp_path, 6))
    assert isinstance(found, Checkpoint)

    def refuse(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("zipfile.ZipFile.__init__", refuse)
    with pytest.raises(RunError, match=r"0_optim_states.pt: cannot be read \(Stale file handle\); try again when"):
        found.find_damage()


def test_a_save_whose_files_are_not_all_there_is_none(tmp_path: Path) -> None:
    write(tmp_path, 6)
    written = temporary(step_folder(tmp_path, 12))
    written.mkdir()
    torch.save({}, written / "0_optim_states.pt")
    with pytest.raises(OSError, match="has the files of 1 of 2 ranks"):
        make_whole(written, 2)
    assert chosen(tmp_path) == 6


def test_what_was_converted_from_a_checkpoint_goes_with_it(tmp_path: Path) -> None:
    folder = write(tmp_path, 6)
    universal(folder).mkdir()
    write(tmp_path, 6)  # after a step back: other contents
    assert not universal(folder).exists()


def test_pruning_keeps_the_last_good_ones_and_what_is_broken_does_not_count(tmp_path: Path) -> None:
    folders = [write(tmp_path, step) for step in (6, 12, 18, 24)]
    lose_a_file(folders[2])
    temporary(step_folder(tmp_path, 30)).mkdir()
    folders[0].with_name(folders[0].name + ".universal").mkdir()
    set_aside(write(tmp_path, 3))
    prune(tmp_path, folders[3], keep=2)
    assert sorted(path.name for path in tmp_path.glob("step*")) == [
        "step00000003.broken",
        "step00000012",
        "step00000024",
    ]
    # A step back: later ones are of a future that is trained anew.
    prune(tmp_path, folders[1], keep=1)
    assert sorted(path.name for path in tmp_path.glob("step????????")) == ["step00000012"]


def test_the_same_step_saved_again_replaces_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, 6)
    lose_a_file(folder)
    write(tmp_path, 6, ranks=3)
    found = read_checkpoint(folder)
    assert isinstance(found, Checkpoint)
    assert found.ranks == 3
    prune(tmp_path, folder, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step00000006"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run/checkpoints", 6)
    refuse_what_others_may_have_written(tmp_path / "run", folder)
    os.chown(folder / "1_optim_states.pt", 12345, -1)
    with pytest.raises(RunError, match=r"1_optim_states.pt: belongs to user 12345, and to load a checkpoint"):
        refuse_what_others_may_have_written(tmp_path / "run", folder)


@pytest.mark.parametrize("name", ["1_optim_states.pt", ".", "..", "../.."])
def test_what_everybody_may_write_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "run/checkpoints", 6)
    place = folder / name
    place.chmod(place.stat().st_mode | 0o002)
    with pytest.raises(RunError, match=r"may be written by everybody.*; chmod -R o-w "):
        refuse_what_others_may_have_written(tmp_path / "run", folder)


@pytest.mark.parametrize(
    "name", ["checkpoints/step00000006/1_optim_states.pt", "checkpoints/step00000006", "checkpoints"]
)
def test_a_link_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "run/checkpoints", 6)
    place, elsewhere = tmp_path / "run" / name, tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a link, and checkpoints are read from their run alone"):
        refuse_what_others_may_have_written(tmp_path / "run", folder)


def test_a_run_may_be_reached_through_a_link(tmp_path: Path) -> None:
    write(tmp_path / "scratch/run/checkpoints", 6)
    (tmp_path / "run").symlink_to(tmp_path / "scratch/run")
    refuse_what_others_may_have_written(tmp_path / "run", tmp_path / "run/checkpoints/step00000006")
