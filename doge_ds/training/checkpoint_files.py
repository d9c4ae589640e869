"""A run's checkpoints as folders: which of them are whole, which may be read, which are kept. Opens none of them.

RUN/checkpoints/step00000012/        one whole checkpoint; whole.json names its files with their sizes
RUN/checkpoints/step00000012.tmp/    one that is being written, or was when the job was killed
RUN/checkpoints/step00000012.broken/ one that was found to be damaged; it is never read again and never deleted
RUN/checkpoints/latest               the name of the newest; written last, so that it never names one that is not whole
"""

import errno
import os
import re
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from doge_ds.errors import RunError
from doge_ds.json_files import is_inside, write_json

WHOLE = "whole.json"
_STEP = re.compile(r"step(\d{8})")


class WholeRecord(BaseModel):
    """whole.json: what a checkpoint consists of. A folder without it, or with other files, is not whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ranks: int
    files: dict[str, int]

    @field_validator("files")
    @classmethod
    def _lie_inside(cls, files: dict[str, int]) -> dict[str, int]:
        if not all(map(is_inside, files)):
            raise ValueError("a file outside of the checkpoint")
        return files


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has all its files, by their names and sizes.

    Attributes:
        folder: RUN/checkpoints/step00000012.
        step: steps that it has behind it.
        ranks: of the processes that wrote it.
        files: names, relative to the folder, sorted.
    """

    folder: Path
    step: int
    ranks: int
    files: list[str]

    def find_damage(self, part: int = 0, parts: int = 1) -> str | None:
        """What is wrong with the contents of every `parts`-th file, from file number `part` on; None where they are as
        they were written.

        torch's files are zip archives with a CRC-32 of every tensor, which torch itself does not look at. To read them
        once more takes about as long as to load them.

        Raises:
            RunError: the file system does not give a file: that says nothing of what is in it.
        """
        for name in [name for name in self.files if name.endswith(".pt")][part::parts]:
            try:
                with zipfile.ZipFile(self.folder / name) as archive:
                    damaged = archive.testzip()
            except OSError as error:
                problem = f"cannot be read ({error.strerror or error})"
                raise RunError(str(self.folder / name), problem, "try again when the file system gives it") from None
            except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
                return f"{name} cannot be read ({error})"
            if damaged is not None:
                return f"{name} is damaged in {damaged}"
        return None


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after so many steps stands."""
    return checkpoints / f"step{step:08d}"


def step_of(folder: Path) -> int | None:
    """Steps that a folder's name says; None where it is no checkpoint's name."""
    found = _STEP.fullmatch(folder.name)
    return int(found[1]) if found else None


def temporary(folder: Path) -> Path:
    """Where a folder is written before it is whole."""
    return folder.with_name(folder.name + ".tmp")


def universal(folder: Path) -> Path:
    """Where a checkpoint stands that was converted for another number of ranks."""
    return folder.with_name(folder.name + ".universal")


def read_checkpoint(folder: Path) -> Checkpoint | str:
    """The checkpoint, by names and sizes alone; or what is missing of it, in words."""
    step = step_of(folder)
    if step is None or not folder.is_dir():
        return "is not there"
    try:
        record = WholeRecord.model_validate_json((folder / WHOLE).read_bytes())
    except OSError:
        return f"has no {WHOLE}"
    except ValidationError:
        return f"has a damaged {WHOLE}"
    for name, size in record.files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"lacks {name}"
        if found != size:
            return f"has {found:,} of {size:,} bytes of {name}"
    return Checkpoint(folder, step, record.ranks, sorted(record.files))


def choose_checkpoint(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint that is not newer than `latest` says; and a line for each that had to be passed over.

    Without `latest`, or with one that names nothing, all count. So one may go back by writing an older name into it.

    Raises:
        RunError: there are checkpoints, or were, and none is whole.
    """
    folders = [folder for folder in checkpoints.glob("step*") if step_of(folder) is not None]
    remedy = "restore one from a copy, or name another --output"
    if not folders:
        if broken := sorted(path.name for path in checkpoints.glob("step*.broken*")):
            raise RunError(str(checkpoints), f"has no checkpoint that is whole: {', '.join(broken)}", remedy)
        if (checkpoints / "latest").exists():
            raise RunError(str(checkpoints), "has lost its checkpoints: only latest is there", remedy)
        return None, []
    named = _step_named_latest(checkpoints)
    passed: list[str] = []
    candidates = [folder for folder in folders if named is None or (step_of(folder) or 0) <= named]
    if not candidates:
        passed.append(f"{checkpoints / 'latest'} names step {named}, and neither it nor an older one is there")
        candidates = folders
    for folder in sorted(candidates, reverse=True):
        found = read_checkpoint(folder)
        if isinstance(found, Checkpoint):
            return found, [f"{problem}; continues from {folder.name}" for problem in passed]
        passed.append(f"{folder} {found}")
    raise RunError(str(checkpoints), f"has no checkpoint that is whole: {', '.join(passed)}", remedy)


def _step_named_latest(checkpoints: Path) -> int | None:
    try:
        return step_of(Path((checkpoints / "latest").read_text().strip() or "nothing"))
    except (OSError, UnicodeDecodeError):
        return None


def refuse_what_others_may_have_written(run: Path, folder: Path) -> None:
    """DeepSpeed's checkpoints are pickles: to load one is to run what its writer put there.

    So a checkpoint is read only from its own run's folder, without links, where every file and folder belongs to the
    user who reads it (or to root) and nobody else may write it but members of a group that the owner let.

    Raises:
        RunError: a file is somebody else's, may be written by everybody, or is a link.
    """
    for path in (run, folder.parent, folder, *sorted(folder.rglob("*"))):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) and path != run:
            raise RunError(
                str(path), "is a link, and checkpoints are read from their run alone", "put the folder there"
            )
        if found.st_uid not in (os.geteuid(), 0):
            problem = f"belongs to user {found.st_uid}, and to load a checkpoint is to run what its writer put there"
            raise RunError(str(path), problem, "copy the run, if you trust it, so that it is yours")
        if found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode):
            problem = "may be written by everybody, and to load a checkpoint is to run what its writer put there"
            raise RunError(str(path), problem, f"chmod -R o-w {run}")


def make_whole(written: Path, ranks: int) -> None:
    """Turn step00000012.tmp, whose files are on disk, into step00000012, and name it in `latest`, in that order.

    Raises:
        OSError: the file system cannot do it, or does not show the files of all ranks; the checkpoint before is still
            the latest.
    """
    folder = written.with_name(written.name.removesuffix(".tmp"))
    if (there := len([*written.glob("*optim_states.pt")])) != ranks:
        raise OSError(errno.EIO, f"has the files of {there} of {ranks} ranks", str(written))
    files = {str(path.relative_to(written)): path.stat().st_size for path in written.rglob("*") if path.is_file()}
    write_json(written / WHOLE, WholeRecord(ranks=ranks, files=files).model_dump())
    sync(written / WHOLE)
    sync(written)
    if folder.exists():  # after a step back: the same step once more
        aside = folder.with_name(folder.name + ".old.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    shutil.rmtree(universal(folder), ignore_errors=True)  # converted from what is replaced now
    written.rename(folder)
    sync(folder.parent)
    pointer = folder.parent / "latest"
    fresh = pointer.with_name("latest.tmp")
    fresh.write_text(folder.name)
    sync(fresh)
    fresh.replace(pointer)
    sync(folder.parent)


def prune(checkpoints: Path, newest: Path, keep: int) -> None:
    """Delete what was never finished, whole checkpoints beyond the newest `keep`, and those after `newest`.

    A folder that is not whole does not count among those that are kept, so the last good one always stays.
    """
    for leftover in checkpoints.glob("step*.tmp"):
        shutil.rmtree(leftover)
    folders = sorted(folder for folder in checkpoints.glob("step*") if step_of(folder) is not None)
    whole = [folder for folder in folders if folder <= newest and isinstance(read_checkpoint(folder), Checkpoint)]
    for folder in folders:
        if folder not in whole[-keep:]:
            shutil.rmtree(universal(folder), ignore_errors=True)
            shutil.rmtree(folder)


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that no start chooses it again; its new place."""
    for number in range(1000):
        broken = folder.with_name(f"{folder.name}.broken{number or ''}")
        if not broken.exists():
            return folder.rename(broken)
    raise RunError(str(folder), "is damaged, as are a thousand before it", "look after the file system")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk; some file systems cannot do it for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():
            raise error
    finally:
        os.close(descriptor)
