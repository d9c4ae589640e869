"""Ranks from Slurm's variables, recorded from Slurm 22.05; who wins; what is refused; what a task's end looks like."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doge_ds.errors import ConfigError
from doge_ds.training import launch
from doge_ds.training.launch import (
    FIRST_PORT,
    LAUNCHER_VARIABLES,
    MASTER_VARIABLES,
    PORTS,
    Ranks,
    read_ranks,
    slurm_environment,
)

ROOT = Path(__file__).resolve().parents[2]

# sbatch --nodes=2 --ntasks-per-node=2, on nodes m1 and m2. The batch script itself:
BATCH_SCRIPT = {
    "SLURM_GTIDS": "0",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "m[1-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "m[1-2]",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
# Task 3 of `srun` in it; of `srun --ntasks=2` in it, task 1; and the task of `srun --nodes=1 --ntasks=1` in it.
STEP_OF_4 = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "m[1-2]"}
TASK_3_OF_4 = {**BATCH_SCRIPT, **STEP_OF_4, "SLURM_GTIDS": "2,3", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
STEP_OF_2 = {"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "m[1-2]", "SLURM_NTASKS": "2"}
TASK_1_OF_2 = {**BATCH_SCRIPT, **STEP_OF_2, "SLURM_GTIDS": "1", "SLURM_PROCID": "1", "SLURM_NODEID": "1"}
STEP_OF_1 = {"SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "m1", "SLURM_NTASKS": "1"}
TASK_0_OF_1 = {**BATCH_SCRIPT, **STEP_OF_1}
# salloc --nodes=2 --ntasks-per-node=2: its shell on the login node, and as an interactive step on the first node.
NO_TASK = ("SLURM_GTIDS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_PROCID")
SALLOC_SHELL = {name: value for name, value in BATCH_SCRIPT.items() if name not in NO_TASK}
INTERACTIVE_STEP = {**BATCH_SCRIPT, **STEP_OF_1, "SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4"}

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (*LAUNCHER_VARIABLES, *MASTER_VARIABLES):
            monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", [{}, BATCH_SCRIPT, TASK_0_OF_1, SALLOC_SHELL, INTERACTIVE_STEP])
def test_whatever_is_no_task_among_others_is_one_process_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm_environment(environment) == {}
    set_environment(monkeypatch, environment)
    assert read_ranks() == Ranks(rank=0, world_size=1, local_rank=0)


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        (TASK_3_OF_4, Ranks(rank=3, world_size=4, local_rank=1)),
        (TASK_1_OF_2, Ranks(rank=1, world_size=2, local_rank=0)),
    ],
)
def test_tasks_of_srun(environment: dict[str, str], ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, environment | MASTER)
    assert read_ranks() == ranks
    assert slurm_environment(os.environ) == {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
        **MASTER,
    }


def test_torchrun_inside_a_task_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TASK_1_OF_2 | MASTER | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert read_ranks() == Ranks(rank=5, world_size=8, local_rank=1)


def test_half_a_launcher_inside_a_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TASK_1_OF_2 | MASTER | {"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match=r"RANK: is missing beside WORLD_SIZE; .*for srun, unset WORLD_SIZE"):
        read_ranks()


@pytest.mark.parametrize(
    "ranks", [("0", "0", "0"), ("5", "2", "1"), ("2", "2", "0"), ("-1", "2", "0"), ("0", "1", "-1")]
)
def test_ranks_that_contradict_each_other_are_refused(
    ranks: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, MASTER | dict(zip(LAUNCHER_VARIABLES, ranks, strict=True)))
    message = f"RANK, WORLD_SIZE, LOCAL_RANK: cannot be {', '.join(ranks)}; RANK is 0 to WORLD_SIZE - 1"
    with pytest.raises(ConfigError, match=message):
        read_ranks()


@pytest.mark.parametrize("name", MASTER_VARIABLES)
def test_several_ranks_that_do_not_know_where_to_meet_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | MASTER)
    assert read_ranks() == Ranks(rank=1, world_size=2, local_rank=1)
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=f"{name}: is missing where WORLD_SIZE is 2; start with deepspeed or torch"):
        read_ranks()
    set_environment(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert read_ranks() == Ranks(rank=0, world_size=1, local_rank=0)


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"]
)
def test_a_missing_or_senseless_variable_is_named_with_the_remedy(name: str) -> None:
    without = {key: value for key, value in TASK_3_OF_4.items() if key != name}
    with pytest.raises(ConfigError, match=f"{name}: is missing inside a Slurm step; start the ranks with srun"):
        slurm_environment(without | MASTER)
    with pytest.raises(ConfigError, match=f"{name}: 'two' is no number; start the ranks with srun"):
        slurm_environment(TASK_3_OF_4 | MASTER | {name: "two"})


def test_a_task_whose_container_hides_the_step_does_not_believe_to_be_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, BATCH_SCRIPT | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"})
    message = r"SLURM_STEP_NUM_TASKS: is missing inside a Slurm step; .*a container must let SLURM_\* through"
    with pytest.raises(ConfigError, match=message):
        read_ranks()


def test_variables_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="SLURM_PROCID: is 3 where SLURM_STEP_NUM_TASKS is 2"):
        slurm_environment(TASK_3_OF_4 | MASTER | {"SLURM_STEP_NUM_TASKS": "2"})
    with pytest.raises(ConfigError, match=r"SLURM_PROCID: is 0 where .* and SLURM_LOCALID is 1"):
        slurm_environment(TASK_3_OF_4 | MASTER | {"SLURM_PROCID": "0"})


NODE_LISTS = {
    "n1": "n1",
    "n[01-03,7],gpu-5": "n01",
    "gpu-5,n[1-2]": "gpu-5",
    "rack[1-2]n[01-04]": "rack1n01",
    "n[7],n[1-2]": "n7",
    "n[007,9-12]": "n007",
}


@pytest.mark.parametrize(("nodes", "first"), NODE_LISTS.items())
def test_the_first_node_is_the_master(nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda name, port: asked.append(name))
    environment = TASK_3_OF_4 | {"SLURM_STEP_NODELIST": nodes}
    assert slurm_environment(environment)["MASTER_ADDR"] == first
    assert asked == [first]


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="scontrol is not installed")
@pytest.mark.parametrize(("nodes", "first"), NODE_LISTS.items())
def test_scontrol_names_the_same_node(nodes: str, first: str, tmp_path: Path) -> None:
    configuration = tmp_path / "slurm.conf"
    configuration.write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodes],
        env={**os.environ, "SLURM_CONF": str(configuration)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == first


@pytest.mark.parametrize("nodes", ["", "n[", "n[]", ",n1"])
def test_a_node_list_that_cannot_be_read_is_refused(nodes: str) -> None:
    with pytest.raises(ConfigError, match=r"SLURM_STEP_NODELIST: .*start the ranks with srun"):
        slurm_environment(TASK_3_OF_4 | {"SLURM_STEP_NODELIST": nodes})


def test_a_node_without_an_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with(number: int) -> None:
        def fail(name: str, port: None) -> None:
            raise socket.gaierror(number, "Name or service not known")

        monkeypatch.setattr("socket.getaddrinfo", fail)

    fail_with(socket.EAI_NONAME)
    with pytest.raises(ConfigError, match=r"the first node, m1, has no address .*export MASTER_ADDR=.*slurm/site\.sh"):
        slurm_environment(TASK_3_OF_4)
    assert slurm_environment(TASK_3_OF_4 | MASTER)["MASTER_ADDR"] == MASTER["MASTER_ADDR"]
    fail_with(socket.EAI_AGAIN)  # a name server that is busy for a moment is torch's to ask again
    assert slurm_environment(TASK_3_OF_4)["MASTER_ADDR"] == "m1"


def test_jobs_and_steps_of_one_node_have_ports_of_their_own() -> None:
    def port(job: int, step: int) -> int:
        environment = TASK_3_OF_4 | {"MASTER_ADDR": "m1", "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
        return int(slurm_environment(environment)["MASTER_PORT"])

    jobs = [port(job, 0) for job in range(4_000_000, 4_000_000 + PORTS)]
    assert len(set(jobs)) == PORTS
    assert min(jobs) >= FIRST_PORT
    assert max(jobs) < 32_768
    near = {port(job, step) for job in range(4_000_000, 4_000_100) for step in range(100)}
    assert len(near) == 100 * 100


def test_free_ports_are_below_linux_own_and_no_two_are_the_same() -> None:
    ports = [launch.free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(20_000 <= port < 32_768 for port in ports)


def test_a_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setattr(launch, "FIRST_PORT", taken)
        monkeypatch.setattr(launch, "_NUMBERS", itertools.count())
        assert launch.free_port() > taken


@pytest.mark.parametrize(
    ("visible", "local_id", "index"),
    [
        ({}, "1", "1"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "1", "1"),  # --gpus-per-node=2
        ({"CUDA_VISIBLE_DEVICES": "1"}, "1", "0"),  # --gpus-per-task=1, as recorded without cgroups
        ({"CUDA_VISIBLE_DEVICES": "0"}, "1", "0"),  # the same where cgroups hide the other GPU
        ({"ROCR_VISIBLE_DEVICES": "1"}, "1", "0"),
        ({"CUDA_VISIBLE_DEVICES": "1", "DS_ACCELERATOR": "cpu"}, "1", "1"),
    ],
)
def test_a_task_that_sees_one_gpu_uses_that_one(visible: dict[str, str], local_id: str, index: str) -> None:
    environment = TASK_3_OF_4 | MASTER | {"SLURM_LOCALID": local_id} | visible
    assert slurm_environment(environment)["LOCAL_RANK"] == index


def test_more_tasks_than_gpus_are_refused() -> None:
    environment = TASK_3_OF_4 | MASTER | {"SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": "0,1"}
    with pytest.raises(
        ConfigError, match=r"SLURM_LOCALID: is 2 where the task sees 2 GPUs \(0,1\); start one task a GPU"
    ):
        slurm_environment(environment)


MISTAKE = """
import sys
from doge_ds.errors import ConfigError
from doge_ds.training import launch
launch.SECONDS_UNTIL_SRUN_IS_TOLD, launch.SECONDS_UNTIL_OTHER_RANKS_SPEAK = map(float, sys.argv[1:])
def main():
    print("about to fail", flush=True)
    raise ConfigError("key", "is wrong", "mend it")
launch.run_program(main)
"""


def start_mistake(environment: dict[str, str], *seconds: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    process = subprocess.Popen(
        [sys.executable, "-c", MISTAKE, *seconds],
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "about to fail\n"
    return process


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_task_that_srun_ends_for_the_same_mistake_says_nothing_and_has_its_status() -> None:
    process = start_mistake(TASK_1_OF_2, "60", "60")
    until = time.monotonic() + 30
    while not catches(process.pid, signal.SIGTERM):  # from the line that it printed to its handler
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=30)
    assert (process.returncode, *printed) == (2, "", "")


def test_a_task_alone_with_its_mistake_tells_it_and_so_does_task_0() -> None:
    process = start_mistake(TASK_1_OF_2, "0.1", "0.1")
    assert process.communicate(timeout=30)[1] == "on rank 1: error: key: is wrong; mend it\n"
    assert process.returncode == 2
    first = start_mistake(TASK_1_OF_2 | {"SLURM_PROCID": "0"}, "0.1", "60")
    assert first.communicate(timeout=30)[1] == "error: key: is wrong; mend it\n"
    assert first.returncode == 2


LINES = """
import sys
from doge_ds.errors import ConfigError
from doge_ds.training import launch
launch.SECONDS_UNTIL_OTHER_RANKS_SPEAK = 0
def main():
    print("copa (1 of 3 tasks)", file=sys.stderr, flush=True)
    raise ConfigError("key", "is wrong", "mend it")
launch.run_program(main)
"""


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["python", "python -u, as deepspeed starts it"])
def test_a_rank_writes_each_line_whole(options: list[str]) -> None:
    ours, of_the_rank = os.pipe2(os.O_DIRECT)  # packets: a read returns what one write wrote
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"RANK": "1"}
    done = subprocess.run([sys.executable, *options, "-c", LINES], env=environment, stderr=of_the_rank, check=False)
    os.close(of_the_rank)
    with open(ours, "rb", buffering=0) as pipe:
        written = list(iter(lambda: pipe.read(4096), b""))
    assert done.returncode == 2
    assert written == [b"copa (1 of 3 tasks)\n", b"on rank 1: error: key: is wrong; mend it\n"]


def test_a_program_in_a_task_without_its_rank_ends_with_one_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {name: value for name, value in TASK_3_OF_4.items() if name != "SLURM_PROCID"}
    environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed says on stdout that it found no GPU
    command = [sys.executable, "doge_ds/train_proxy.py", "--config", "ds_configs/runs/demo_proxy.json"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1
    assert "error: environment variable SLURM_PROCID: is missing inside a Slurm step; " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


SAVED = """
import os, signal, sys, torch
from doge_ds.training import launch
def main():
    launch.start_process_group(launch.read_ranks())
    status = launch.finish(75)
    os.kill(os.getpid(), signal.SIGTERM)
    return status
launch.run_program(main)
"""


def test_a_task_that_has_saved_keeps_status_75_when_srun_ends_the_others() -> None:
    environment = {**os.environ, **TASK_0_OF_1, "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", SAVED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
