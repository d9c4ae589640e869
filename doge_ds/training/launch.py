"""Ranks, devices and seeds, however the program was started: by deepspeed, torchrun or srun, or by hand as one process.

The variables of deepspeed and torchrun win over Slurm's, so that either may be started inside a Slurm job.
"""

import errno
import hashlib
import io
import itertools
import os
import re
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from doge_ds.errors import ConfigError, DogeError, SaveError, report
from doge_ds.training.stacks import print_stacks_on_usr2

# A launcher that sees one rank fail ends the others within a second or two. A rank that still lives after this long has
# an error that rank 0 does not have (a file that only its node lacks), and must speak for itself.
SECONDS_UNTIL_OTHER_RANKS_SPEAK = 5.0

# srun ends the other ranks when the first one fails, and its own status is the highest of all ranks. One that SIGTERM
# ends while it still imports torch counts as 143 and would hide the 2 of a user's mistake: rank 0 lets the others come
# as far as the same mistake before it ends.
SECONDS_UNTIL_SRUN_IS_TOLD = 5.0

# The watchdog says who is missing, torch does not: it shall be first.
SECONDS_BEHIND_THE_WATCHDOG = 60.0

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
MASTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID")
SLURM_REMEDY = "start the ranks with srun, as slurm/proxy.sh does"

# What Slurm sets for GPUs of NVIDIA, AMD and Intel.
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")

# From 20000 up to below the ports that Linux gives to outgoing connections (from 32768). 12007 is a prime, so jobs of
# one node whose numbers differ by less than that never meet in their first steps.
FIRST_PORT, PORTS, PORTS_BETWEEN_JOBS = 20_000, 12_007, 100
_NUMBERS = itertools.count(secrets.randbelow(PORTS))  # one process gets no port twice, two processes hardly the same


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: 0 to world_size - 1; rank 0 writes files and talks to the terminal.
        world_size: processes in the run.
        local_rank: index of this process's device among those that it sees: its index on its node, or 0 where Slurm
            shows each task one GPU alone.
    """

    rank: int
    world_size: int
    local_rank: int


def read_ranks() -> Ranks:
    """Ranks from the variables that torchrun and deepspeed set, else from srun's; without them one process alone.

    Raises:
        ConfigError: some of the variables are there and others are not, they are no numbers, or contradict each other;
            several ranks without MASTER_ADDR and MASTER_PORT.
    """
    given = {name: os.environ[name] for name in LAUNCHER_VARIABLES if name in os.environ}
    if not given:
        given = slurm_environment(os.environ)
    if not given:
        return Ranks(rank=0, world_size=1, local_rank=0)
    if missing := [name for name in LAUNCHER_VARIABLES if name not in given]:
        raise ConfigError(
            f"environment variable {missing[0]}",
            f"is missing beside {', '.join(given)}",
            f"start with deepspeed or torchrun; for srun, unset {' '.join(given)}",
        )
    try:
        ranks = Ranks(*(int(given[name]) for name in LAUNCHER_VARIABLES))
    except ValueError:
        raise ConfigError(
            "RANK, WORLD_SIZE, LOCAL_RANK", f"{given} are no numbers", "start with deepspeed or torchrun"
        ) from None
    _check_ranks(ranks, {**os.environ, **given})
    return ranks


def _check_ranks(ranks: Ranks, environment: Mapping[str, str]) -> None:
    """Raises ConfigError where the numbers contradict each other, or nothing says where several ranks meet."""
    if not 0 <= ranks.rank < ranks.world_size or ranks.local_rank < 0:
        found = f"cannot be {ranks.rank}, {ranks.world_size}, {ranks.local_rank}"
        allowed = "RANK is 0 to WORLD_SIZE - 1 and LOCAL_RANK at least 0; start with deepspeed or torchrun"
        raise ConfigError("RANK, WORLD_SIZE, LOCAL_RANK", found, allowed)
    missing = [name for name in MASTER_VARIABLES if not environment.get(name)]
    if missing and ranks.world_size > 1:  # DeepSpeed would ask MPI for all of them
        problem = f"is missing where WORLD_SIZE is {ranks.world_size}"
        raise ConfigError(f"environment variable {missing[0]}", problem, "start with deepspeed or torchrun, or set it")


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a task that srun started; empty for anything else.

    The step's variables tell: a batch script has SLURM_PROCID and SLURM_NTASKS too but belongs to no step, the shell of
    `salloc` has SLURM_NTASKS or is an interactive step of one task. A step of one task is one process alone. A batch
    script's SLURM_PROCID is always 0, so another one belongs to a task whose container hides the step's variables.
    MASTER_ADDR and MASTER_PORT stay what the user set; else they are the step's first node, where task 0 runs unless
    `--distribution=arbitrary` says otherwise, and a port made of the job's and the step's number.

    Raises:
        ConfigError: a variable of the step is missing or contradicts another, or the first node has no address.
    """
    is_in_step = "SLURM_STEP_ID" in environment or "SLURM_STEP_NUM_TASKS" in environment
    is_in_step |= environment.get("SLURM_PROCID", "0") != "0"
    if not is_in_step or environment.get("SLURM_STEP_NUM_TASKS") == "1":
        return {}
    tasks, step, job, rank, local = (_slurm_number(environment, name) for name in SLURM_VARIABLES)
    if rank >= tasks or local > rank:
        found = f"is {rank} where SLURM_STEP_NUM_TASKS is {tasks} and SLURM_LOCALID is {local}"
        raise ConfigError("environment variable SLURM_PROCID", found, SLURM_REMEDY)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(_device_index(environment, local)),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_node(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + (PORTS_BETWEEN_JOBS * job + step) % PORTS),
    }


def _slurm_number(environment: Mapping[str, str], name: str) -> int:
    """The variable's number. Raises ConfigError where it is missing or none."""
    if name not in environment:
        remedy = f"{SLURM_REMEDY}; a container must let SLURM_* through"
        raise ConfigError(f"environment variable {name}", "is missing inside a Slurm step", remedy)
    if not re.fullmatch(r"[0-9]+", environment[name]):
        raise ConfigError(f"environment variable {name}", f"{environment[name]!r} is no number", SLURM_REMEDY)
    return int(environment[name])


def _device_index(environment: Mapping[str, str], local_id: int) -> int:
    """The task's device among those that it sees.

    With --gpus-per-task or --gpu-bind=single Slurm shows a task its own GPU alone, whose index is 0 for all tasks;
    DeepSpeed takes the index from LOCAL_RANK.

    Raises:
        ConfigError: the node has more tasks than GPUs that they all see.
    """
    visible = next((environment[name].split(",") for name in VISIBLE_DEVICES if environment.get(name)), None)
    if visible is None or environment.get("DS_ACCELERATOR") == "cpu":
        return local_id
    if len(visible) == 1:
        return 0
    if local_id >= len(visible):
        problem = f"is {local_id} where the task sees {len(visible)} GPUs ({','.join(visible)})"
        raise ConfigError("environment variable SLURM_LOCALID", problem, "start one task a GPU (--ntasks-per-node)")
    return local_id


def _first_node(environment: Mapping[str, str]) -> str:
    """The first name of SLURM_STEP_NODELIST, like n01 of `n[01-03,7],gpu-5`.

    Read here and not by `scontrol show hostnames`: only the first name is wanted, its zeros stand in the list as they
    are in the name, and containers on compute nodes often lack scontrol and Slurm's configuration.

    Raises:
        ConfigError: the list is missing, or the name does not resolve (torch would try for minutes).
    """
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    first = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])
    if not re.fullmatch(r"[\w.-]+", first):
        problem = f"{nodes!r} begins with no node's name" if nodes else "is missing inside a Slurm step"
        raise ConfigError("environment variable SLURM_STEP_NODELIST", problem, SLURM_REMEDY)
    try:
        socket.getaddrinfo(first, None)
    except socket.gaierror as error:
        if error.errno != socket.EAI_AGAIN:  # a name server that is busy for a moment; torch tries again
            problem = f"the first node, {first}, has no address ({error.strerror})"
            remedy = "export MASTER_ADDR=<a name or address of that node> in slurm/site.sh"
            raise ConfigError("environment variable SLURM_STEP_NODELIST", problem, remedy) from None
    return first


def start_process_group(ranks: Ranks, rank_timeout: float = 1800.0) -> None:
    """Choose this rank's device and join the others, through DeepSpeed's communication layer.

    Args:
        ranks: from `read_ranks`.
        rank_timeout: seconds after which the watchdog ends a run that stands still. A minute later torch and NCCL give
            up waiting too, which also holds while a run starts.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if ranks.world_size == 1 and not {"RANK", *MASTER_VARIABLES} <= os.environ.keys():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    elif "RANK" not in os.environ:
        os.environ.update(slurm_environment(os.environ))  # where DeepSpeed and torch look
    # On CPUs DeepSpeed compiles its communication op with ninja and finds it again only with the same ninja: the one
    # that was installed beside this Python, whether or not the virtual environment is activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    get_accelerator().set_device(ranks.local_rank)
    with redirect_stdout(io.StringIO()):  # every rank would print that the op was "built", also when it was only found
        deepspeed.init_distributed(
            dist_backend=get_accelerator().communication_backend_name(),
            verbose=False,
            timeout=timedelta(seconds=rank_timeout + SECONDS_BEHIND_THE_WATCHDOG),
        )
    deepspeed.comm.barrier()  # every rank has looked at the run directory before rank 0 changes it


def free_port() -> int:
    """A port that nobody listens on, for ranks of one machine to meet at.

    Not the one that Linux would give: from its ports (from 32768) it gives to whoever asks for any, as each rank of
    another run does a few times while these ranks, for some seconds, still load torch.
    """
    while True:
        port = FIRST_PORT + next(_NUMBERS) % PORTS
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port


def quieten_libraries() -> None:
    """Warnings and errors of DeepSpeed only: its dozens of information lines bury ours."""
    import logging
    import warnings

    from deepspeed.utils import logger
    from transformers.utils import logging as transformers_logging

    logger.setLevel(logging.WARNING)
    if not sys.stderr.isatty():  # bars of reading and writing a model's tensors, one endless line in a log file
        transformers_logging.disable_progress_bar()
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

    if status == 75:
        # srun takes the first rank that ends with 75 for a failure and ends the others; as 143 they would hide the 75,
        # and so would a job script's second SIGUSR1 as 138.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return status


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program on this rank and exit with its status; print a user's mistake once, not once a rank."""
    _print_whole_lines()
    print_stacks_on_usr2()
    is_srun_task = "RANK" not in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    try:
        status = main()
    except DogeError as error:
        status = _report_once(error, is_srun_task)
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        status = _report_unexpected(error, is_srun_task)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after an error other ranks may wait in a collective, and torch's process group would wait for them.
    if status not in (0, 75):
        os._exit(status)
    sys.exit(status)


def _print_whole_lines() -> None:
    """Each line on stderr in one write(2), which up to 4 KB other ranks that write to the same pipe cannot tear.

    Python writes what it prints at once and its newline after it: two ranks that said something in the same moment
    were read as `copa (1 of 3 tasks)sciq (2 of 3 tasks)` and an empty line.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=True, write_through=False)


def _report_unexpected(error: Exception, is_srun_task: bool) -> int:
    """A full disk is no defect of ours and gets its line; all else keeps its traceback. The exit status."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where, problem = str(error.filename or "the run directory"), f"cannot be written ({error.strerror})"
        return _report_once(SaveError(where, problem, "make room; the same command continues"), is_srun_task)
    traceback.print_exc()
    return 1


def _report_once(error: DogeError, is_srun_task: bool) -> int:
    """Rank 0 prints at once; the others only where rank 0's end did not end them."""
    # A launcher that ends this rank while it waits has been told of the same error by another.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(error.exit_status))
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")  # as text: it may be the very mistake
    if rank != "0":
        time.sleep(SECONDS_UNTIL_OTHER_RANKS_SPEAK + is_srun_task * SECONDS_UNTIL_SRUN_IS_TOLD)
        print(f"on rank {rank}:", end=" ", file=sys.stderr)
    status = report(error)
    if rank == "0" and is_srun_task:
        time.sleep(SECONDS_UNTIL_SRUN_IS_TOLD)
    return status
