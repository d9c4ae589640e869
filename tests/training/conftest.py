"""One process group for all tests that need an engine or a monitor in this very process."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from doge_ds.training.launch import Ranks, start_process_group


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """Of this process alone, through DeepSpeed; the environment stays as it was."""
    with pytest.MonkeyPatch.context() as patch:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        for name, value in alone.items():
            patch.setenv(name, value)
        start_process_group(Ranks(rank=0, world_size=1, local_rank=0))
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write into a file there until nothing more goes in; the file, to delete again."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
    except OSError:
        return filler
