"""A private Slurm of two nodes on this machine: real daemons, a temporary folder, free ports, ended by pid files."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NODES = ("m1", "m2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol")
PACKAGES = ("slurmctld", "slurmd", "slurm-client")

# auth/none believes every caller that he is who he says: whoever reaches these ports may start programs as anybody.
# Never use it where others can reach the machine; a real cluster has auth/munge.
#
# Debian builds slurmd with --enable-multiple-slurmd: several nodes on one host, each with a name and a port but without
# an address, so jobs need MASTER_ADDR. cred_expire and the scheduler's intervals let a requeued job start after some 6
# seconds; by default that takes 2 to 3 minutes.
CONFIGURATION = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=8
KillWait=20
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=m1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=m2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def install() -> str | None:
    """Install Debian's Slurm where it is missing; why that cannot be done, or None."""
    found = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    if all(shutil.which(program, path=found) for program in PROGRAMS):
        return None
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"Slurm is not installed, and only root on Debian can do it here: apt-get install {' '.join(PACKAGES)}"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"apt-get install {' '.join(PACKAGES)} failed: {''.join(done.stderr.strip().splitlines()[-1:])}"
    return None


def wait_until(is_true: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Poll; fails with `what` when the time is over."""
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.1)


class Cluster:
    """A running cluster; `environment` is what every client of it needs.

    Attributes:
        folder: configuration, pid files and logs.
    """

    def __init__(self, folder: Path) -> None:
        """Write the configuration; `start` starts the daemons."""
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                folder=folder, host=socket.gethostname().split(".")[0], user=getpass.getuser(), ports=_free_ports(3)
            )
        )
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        paths = f"{clean['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
        self.environment = {**clean, "SLURM_CONF": str(configuration), "PATH": paths}

    def start(self) -> None:
        self.run("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.node_states() == ["idle"], "both nodes are idle", 30)

    def call(self, *command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a client or daemon."""
        return subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )

    def run(self, *command: str, folder: Path | None = None) -> str:
        """Its output; fails where its status is not 0."""
        done = self.call(*command, folder=folder)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """As when a node loses its power: slurmd and all that it started are gone at once."""
        file = self.folder / f"slurmd-{node}.pid"
        os.kill(int(file.read_text()), signal.SIGKILL)
        file.unlink()
        for process in self._processes_of(node):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _processes_of(self, node: str) -> set[int]:
        """What steps of this cluster have started on this node, and the slurmstepd of each."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (process / "environ").read_bytes().split(b"\0")
                wanted = (f"SLURM_CONF={self.environment['SLURM_CONF']}", f"SLURMD_NODENAME={node}")
                if all(variable.encode() in variables for variable in wanted):
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    title = Path(f"/proc/{parent}/cmdline").read_bytes()
                    found |= {int(process.name), *([int(parent)] if title.startswith(b"slurmstepd") else [])}
        return found

    def node_states(self) -> list[str]:
        return sorted(set(self.run("sinfo", "-h", "-o", "%T").split()))

    def submit(self, *arguments: str, folder: Path) -> int:
        """sbatch from `folder`; the job's number."""
        return int(self.run("sbatch", "--parsable", *arguments, folder=folder))

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Reason, ExitCode, Restarts, ..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", str(number)).splitlines()[0]
        return dict(pair.partition("=")[::2] for pair in shown.split() if "=" in pair)

    def wait_for(self, number: int | str, *states: str, seconds: float = 240) -> dict[str, str]:
        """Until the job is in one of these states; fails when it comes to another end."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        until = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert job["JobState"] not in ends, job
            assert time.monotonic() < until, job
            time.sleep(0.1)
        return job

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("scancel", "--user", getpass.getuser())
            wait_until(lambda: not self.run("squeue", "-h"), "all jobs are gone", 30)
        files = [self.folder / f"{name}.pid" for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld")]
        for file in files:
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)
        wait_until(lambda: not any(file.exists() for file in files), "the daemons have removed their pid files", 20)


@contextmanager
def private_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster as long as the context lasts."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
