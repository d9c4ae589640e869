"""Ranks, devices and seeds, however the program was started: by deepspeed, by torchrun, or by hand as one process."""

import hashlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from doge_ds.errors import ConfigError, DogeError, report

# A launcher that sees one rank fail ends the others within a second or two. A rank that still lives after this long has
# an error that rank 0 does not have (a file that only its node lacks), and must speak for itself.
SECONDS_UNTIL_OTHER_RANKS_SPEAK = 5.0


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: 0 to world_size - 1; rank 0 writes files and talks to the terminal.
        world_size: processes in the run.
        local_rank: index of this process, and of its device, on its node.
    """

    rank: int
    world_size: int
    local_rank: int


def read_ranks() -> Ranks:
    """Ranks from the variables that torchrun and deepspeed set; without them one process alone.

    Raises:
        ConfigError: some of the variables are there and others are not, or they are no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return Ranks(rank=0, world_size=1, local_rank=0)
    if missing := [name for name in names if name not in given]:
        raise ConfigError(
            f"environment variable {missing[0]}",
            f"is missing beside {', '.join(given)}",
            "start with deepspeed or torchrun",
        )
    try:
        return Ranks(*(int(given[name]) for name in names))
    except ValueError:
        raise ConfigError(
            "RANK, WORLD_SIZE, LOCAL_RANK", f"{given} are no numbers", "start with deepspeed or torchrun"
        ) from None


def start_process_group(ranks: Ranks) -> None:
    """Choose this rank's device and join the others, through DeepSpeed's communication layer."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if ranks.world_size == 1 and "MASTER_ADDR" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    # On CPUs DeepSpeed compiles its communication op with ninja and finds it again only with the same ninja: the one
    # that was installed beside this Python, whether or not the virtual environment is activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    get_accelerator().set_device(ranks.local_rank)
    with redirect_stdout(io.StringIO()):  # every rank would print that the op was "built", also when it was only found
        deepspeed.init_distributed(dist_backend=get_accelerator().communication_backend_name(), verbose=False)
    deepspeed.comm.barrier()  # every rank has looked at the run directory before rank 0 changes it


def quieten_libraries() -> None:
    """Warnings and errors of DeepSpeed only: its dozens of information lines bury ours."""
    import logging
    import warnings

    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # Functions that DeepSpeed calls are being renamed in torch; nothing that a user could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def seed_everything(*keys: int | str) -> None:
    """Seed torch's generators by a hash of the keys: draws depend on nothing that came before.

    Keyed by (seed, step, domain, micro-batch, rank), dropout is the same after a resume as without one.
    """
    import torch

    digest = hashlib.blake2b("\0".join(map(str, keys)).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def finish(status: int) -> int:
    """Leave the process group, where there is one, so that no rank waits for another while it ends."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return status


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program on this rank and exit with its status; print a user's mistake once, not once a rank."""
    try:
        status = main()
    except DogeError as error:
        status = _report_once(error)
    except KeyboardInterrupt:
        status = 130
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after an error other ranks may wait in a collective, and torch's process group would wait for them.
    if status not in (0, 75):
        os._exit(status)
    sys.exit(status)


def _report_once(error: DogeError) -> int:
    """Rank 0 prints at once; the others only where rank 0's end did not end them."""
    rank = os.environ.get("RANK", "0")  # as text: that it is no number may be the very mistake
    if rank != "0":
        time.sleep(SECONDS_UNTIL_OTHER_RANKS_SPEAK)
        print(f"on rank {rank}:", end=" ", file=sys.stderr)
    return report(error)
