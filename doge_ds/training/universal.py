"""A checkpoint made ready for another number of ranks, through DeepSpeed's universal checkpoint."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from filelock import FileLock

from doge_ds.errors import RunError
from doge_ds.training.checkpoint_files import (
    Checkpoint,
    refuse_what_others_may_have_written,
    sync,
    temporary,
    universal,
)

# The converter reads one old rank's file in each process.
WORKERS = 4
# The other ranks wait for the one that converts; a large model on a slow file system may take hours.
LONGEST_CONVERSION = timedelta(days=1)


def converted(checkpoint: Checkpoint, rank: int) -> Path:
    """The folder that any number of ranks can load (collective): made by rank 0, where it is not there yet.

    Raises:
        RunError: on every rank, DeepSpeed's converter failed; or others may have written what is there.
    """
    folder = universal(checkpoint.folder)
    store = torch.distributed.distributed_c10d._get_default_store()
    key = f"doge_ds/converted/{folder}"
    if rank == 0:
        # The answer must come whatever happens: the others wait for it.
        answer = "the process ended"
        try:
            answer = _convert(checkpoint, folder)
        finally:
            store.set(key, answer)
    store.wait([key], LONGEST_CONVERSION)
    if problem := store.get(key).decode():
        remedy = f"start it on {checkpoint.ranks} ranks, which need no conversion"
        raise RunError(
            str(checkpoint.folder), f"could not be converted for another number of ranks ({problem})", remedy
        )
    refuse_what_others_may_have_written(folder.parents[1], folder)
    return folder


def forget_conversion(checkpoint: Checkpoint) -> None:
    """Delete what `converted` made."""
    shutil.rmtree(universal(checkpoint.folder), ignore_errors=True)


@contextmanager
def loads_universal(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Within it, the engine's load_checkpoint takes a folder for a universal checkpoint; mends what it leaves behind.

    Of DeepSpeed 0.19's ZeRO-3: it gives all tensors of the optimizer one and the same count of steps, which each of
    them then raises (after 10 steps of two groups Adam's bias correction is that of step 20: losses differ by 5e-4),
    and gives all parameter groups the first one's weight decay.
    """
    optimizer = engine.optimizer.optimizer
    weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False
    for group, weight_decay in zip(optimizer.param_groups, weight_decays, strict=True):
        group["weight_decay"] = weight_decay
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def _convert(checkpoint: Checkpoint, folder: Path) -> str:
    """Make the folder, in one piece or not at all; what went wrong, or nothing."""
    with FileLock(folder.with_name("universal.lock")):
        if folder.is_dir():
            return ""
        ranks, here = checkpoint.ranks, torch.distributed.get_world_size()
        print(f"converts {checkpoint.folder.name} from {ranks} to {here} ranks, once", file=sys.stderr, flush=True)
        # A converter whose rank was killed may still write into the folder of its own number.
        written = temporary(folder.with_name(f"{folder.name}.{os.getpid()}"))
        shutil.rmtree(written, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        command += ["--input_folder", str(checkpoint.folder), "--output_folder", str(written)]
        command += ["--num_extract_workers", str(WORKERS), "--num_merge_workers", str(WORKERS)]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(written, ignore_errors=True)
            lines = done.stderr.strip().splitlines()
            return lines[-1] if lines else f"status {done.returncode}"
        for path in written.rglob("*"):
            sync(path)
        written.rename(folder)
        sync(folder.parent)
    return ""


def _environment() -> dict[str, str]:
    """This process's, without what makes it a rank: the converter is no rank, and needs no GPU."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ours}
