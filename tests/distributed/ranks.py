"""Start several real ranks on this machine."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from doge_ds.training.launch import free_port

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """This process's, with the CPU accelerator, one thread a rank, and the virtual environment's programs on PATH."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


FORKS = multiprocessing.get_context("forkserver")
# To start Python and load these takes 5 to 8 seconds of a core, to fork a process that has loaded them nothing;
# what torch and DeepSpeed load when an engine starts and takes its first step is another 2.4 seconds of each rank.
PROGRAMS = ("torch", "deepspeed", "transformers", "doge_ds.train_base", "doge_ds.train_proxy")
AT_THE_FIRST_STEP = ("torch._inductor.compile_fx", "torch.distributed.tensor", "torch.utils.cpp_extension")
AT_THE_FIRST_STEP += ("torch.utils.tensorboard", "transformers.models.gpt2.modeling_gpt2", "deepspeed.module_inject")
FORKS.set_forkserver_preload([*PROGRAMS, *AT_THE_FIRST_STEP])


def _be_rank(program: str, arguments: Sequence[str], variables: dict[str, str], output: Path) -> None:
    """What `python program arguments` does, in a process that has loaded the libraries; prints into a file."""
    with output.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = [program, *arguments]
    sys.path[:0] = [str(ROOT / Path(program).parent), str(ROOT)]
    runpy.run_path(str(ROOT / program), run_name="__main__")


@atexit.register
def _kill_the_stopped() -> None:
    """What a failed test left behind: multiprocessing would wait for a process that was stopped."""
    for process in multiprocessing.active_children():
        process.kill()


class Rank:
    """One process, with what a Popen has of it."""

    def __init__(self, program: str, arguments: Sequence[str], variables: dict[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="rank_")
        os.close(descriptor)
        self._output = Path(name)
        self._process = FORKS.Process(target=_be_rank, args=(program, arguments, variables, self._output), daemon=True)
        with patched_environment(environment()):  # of the process that is forked, at its first start
            self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended a moment ago
            os.kill(self._process.pid or 0, number)

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"a rank did not end in {timeout} seconds: {self.printed()[-6000:]}")
        return self._process.exitcode

    def printed(self) -> str:
        return self._output.read_text(errors="replace")

    def __del__(self) -> None:
        self._output.unlink(missing_ok=True)


class Ranks:
    """The ranks of one program, started as torchrun would, but each in our hands: to signal, kill and wait for."""

    def __init__(self, count: int, program: str, *arguments: str, first_rank: int = 0, world_size: int = 0) -> None:
        shared = {**environment(), "WORLD_SIZE": str(world_size or count), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free_port())
        self.processes = [
            Rank(program, arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(first_rank, first_rank + count)
        ]

    def wait_for_lines(self, file: Path, count: int, timeout: float = 120) -> None:
        """Until `file` has this many lines; fails where a rank ends before."""
        self.wait_until(lambda: file.exists() and file.read_text().count("\n") >= count, timeout)

    def wait_until(self, is_so: Callable[[], bool], timeout: float = 120) -> None:
        """Until something is so; fails where a rank ends before."""
        until = time.monotonic() + timeout
        while not is_so():
            assert time.monotonic() < until, self.printed()[-3000:]
            assert all(process.poll() is None for process in self.processes), self.finish()
            time.sleep(0.002)

    def kill(self) -> str:
        """SIGKILL to all ranks; what they had printed."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        return self.finish()[1]

    def finish(self, timeout: float = 180) -> tuple[list[int], str]:
        """Exit status of every rank, and all that they printed."""
        statuses = [process.wait(timeout) for process in self.processes]
        return statuses, self.printed()

    def printed(self) -> str:
        return "".join(process.printed() for process in self.processes)


def run_worker(world_size: int, script: str, *arguments: str, timeout: float = 300) -> str:
    """Run tests/distributed/<script> on `world_size` ranks; its output. Fails with it where a rank fails."""
    statuses, printed = Ranks(world_size, f"tests/distributed/{script}", *arguments).finish(timeout)
    assert statuses == [0] * world_size, printed[-9000:]
    return printed


@contextmanager
def patched_environment(variables: dict[str, str]) -> Iterator[None]:
    """Within it, this process has these environment variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def deepspeed(world_size: int, program: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """What a user types: deepspeed --num_accelerators N PROGRAM ..."""
    command = ["deepspeed", "--num_accelerators", str(world_size), "--master_port", str(free_port()), program]
    return subprocess.run(
        [*command, *arguments],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
