"""Start several real ranks on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """This process's, with the CPU accelerator, one thread a rank, and the virtual environment's programs on PATH."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(world_size: int, script: str, *arguments: str, timeout: float = 300) -> None:
    """Run tests/distributed/<script> on `world_size` ranks; fails with the output where a rank fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world_size)]
    command += ["--master_port", str(free_port()), str(ROOT / "tests/distributed" / script), *arguments]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


class Ranks:
    """The ranks of one program, started as torchrun would, but each in our hands: to signal, kill and wait for."""

    def __init__(self, count: int, program: str, *arguments: str, first_rank: int = 0, world_size: int = 0) -> None:
        shared = {**environment(), "WORLD_SIZE": str(world_size or count), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free_port())
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(ROOT / program), *arguments],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(first_rank, first_rank + count)
        ]

    def wait_for_lines(self, file: Path, count: int, timeout: float = 120) -> None:
        """Until `file` has this many lines; fails where a rank ends before."""
        until = time.monotonic() + timeout
        while not file.exists() or file.read_text().count("\n") < count:
            assert time.monotonic() < until, f"{file} did not reach {count} lines"
            assert all(process.poll() is None for process in self.processes), self.finish()
            time.sleep(0.005)

    def kill(self) -> str:
        """SIGKILL to all ranks; what they had printed."""
        for process in self.processes:
            process.kill()
        return self.finish()[1]

    def finish(self, timeout: float = 180) -> tuple[list[int], str]:
        """Exit status of every rank, and all that they printed."""
        printed = "".join(process.communicate(timeout=timeout)[0] for process in self.processes)
        return [process.returncode for process in self.processes], printed


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
