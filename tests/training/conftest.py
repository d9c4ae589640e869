"""One process group for all tests that need an engine or a monitor in this very process."""

from collections.abc import Iterator

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
