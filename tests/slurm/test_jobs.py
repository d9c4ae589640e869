"""Proxy jobs on two nodes of a real Slurm: preempted, cancelled, without one of their nodes. Nothing is lost."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import STEPS, Project


def preempt(project: Project) -> int:
    """A job of the partition with the higher priority, on all CPUs."""
    return project.submit("--partition=urgent", "--nodes=2", "--ntasks-per-node=2", "--wrap=sleep 1")


def assert_same(project: Project, run: str, undisturbed: str) -> None:
    """Bit for bit: JSON has every digit."""
    assert [line["step"] for line in project.lines(run)] == list(range(1, STEPS + 1))
    assert project.lines(run) == project.lines(undisturbed)
    assert project.weights(run) == project.weights(undisturbed)


def test_a_proxy_on_two_nodes(project: Project, undisturbed: str) -> None:
    lines, weights = project.lines(undisturbed), project.weights(undisturbed)
    assert len(lines) == STEPS
    assert len(lines[0]["gram"]) == 4
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert max(weights, key=weights.__getitem__) == "b"  # the target is made like b
    kept = project.folder / undisturbed / "submitted"
    assert sorted(file.name for file in kept.iterdir()) == ["launch.sh", "proxy.json", "proxy.sh", "site.sh"]
    assert (kept / "site.sh").read_text() == (project.folder / "slurm/site.sh").read_text()


def test_the_jobs_status_is_the_programs(project: Project) -> None:
    (project.folder / "wrong.json").write_text("{}")
    job = project.submit("--nodes=2", "--ntasks-per-node=1", "slurm/proxy.sh", "wrong.json")
    assert project.cluster.wait_for(job, "FAILED")["ExitCode"] == "2:0"
    assert len(re.findall(r"^error: wrong.json: ", project.log(job), re.MULTILINE)) == 1


def test_preempted_in_mid_run_it_goes_on_by_itself_to_the_same_bits(project: Project, undisturbed: str) -> None:
    cluster, job = project.cluster, project.proxy("preempted")
    waiting = project.submit(f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", "--wrap=true")
    project.wait_for_steps("preempted", 40)
    urgent = preempt(project)
    cluster.wait_for(urgent, "COMPLETED")
    assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING")
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    log = project.log(job)
    assert "got SIGUSR1 and asks the ranks to save and end" in log
    stopped = re.findall(rf"stopped and saved after step (\d+) of {STEPS}", log)
    assert re.findall(rf"continues after step (\d+) of {STEPS}", log) == stopped
    assert 40 <= int(stopped[0]) < STEPS
    assert "is not finished (status 75) and goes back into the queue" in log
    assert_same(project, "preempted", undisturbed)
    cluster.wait_for(waiting, "COMPLETED")  # what waits for success waited


def test_preempted_while_its_ranks_start_it_goes_back_into_the_queue(project: Project) -> None:
    cluster, job = project.cluster, project.proxy("early")
    wait_until(lambda: "restart 0: doge_ds/train_proxy.py" in project.log(job), "the job starts")
    urgent = preempt(project)
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", "the job is requeued")
    cluster.run("scancel", str(job))  # it waits, so that nothing has to be saved
    assert re.search(r"is not finished \(status (138|143)\) and goes back into the queue", project.log(job))
    assert not (project.folder / "early").exists()
    cluster.wait_for(urgent, "COMPLETED")


def test_scancel_ends_it_for_good_and_what_was_saved_goes_on(project: Project, undisturbed: str) -> None:
    cluster, job = project.cluster, project.proxy("cancelled", "--no-requeue")
    project.wait_for_steps("cancelled", 40)
    cluster.run("scancel", "--signal=USR1", str(job))
    assert cluster.wait_for(job, "FAILED")["ExitCode"] == "75:0"
    assert "is not finished and was submitted with --no-requeue: submit it again" in project.log(job)
    first = len(project.lines("cancelled"))
    assert 40 <= first < STEPS

    job = project.proxy("cancelled")
    project.wait_for_steps("cancelled", first + 30)
    cluster.run("scancel", str(job))
    cluster.wait_for(job, "CANCELLED")
    log = project.log(job)
    assert f"continues after step {first} of {STEPS}" in log
    second = int(re.findall(rf"stopped and saved after step (\d+) of {STEPS}", log)[0])
    assert "goes back into the queue" not in log

    last = project.proxy("cancelled")
    cluster.wait_for(last, "COMPLETED")
    assert f"continues after step {second} of {STEPS}" in project.log(last)
    assert_same(project, "cancelled", undisturbed)
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("CANCELLED", "0")


SLEEPER = """#!/bin/bash
[[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || exec sleep 60
"""


def test_tasks_of_an_array_that_are_preempted_go_back_each_by_itself(project: Project, tmp_path: Path) -> None:
    """`slurm/prepare.sh` with a program that catches no signal, and lasts until it is preempted."""
    shutil.copytree(project.folder / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm/site.sh").write_text("VIRTUAL_ENVIRONMENT=.venv\nSRUN_OPTIONS=()\n")
    program = tmp_path / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(SLEEPER)
    program.chmod(0o755)
    cluster, here = project.cluster, replace(project, folder=tmp_path)
    first = here.submit("--array=0-2", "--ntasks=1", "slurm/prepare.sh", "recipe.json", "--output", "store")
    tasks = [f"{first}_{number}" for number in range(3)]
    wait_until(lambda: all("restart 0" in text for text in logs_of_shares(tmp_path)), "all tasks run")
    on_m1 = [task for task in tasks if cluster.job(task)["NodeList"] == "m1"]
    others = sorted({*tasks} - {*on_m1})
    assert on_m1
    assert others
    here.submit("--partition=urgent", "--nodelist=m1", "--ntasks-per-node=2", "--output=urgent", "--wrap=sleep 1")
    for task in on_m1:
        assert cluster.wait_for(task, "COMPLETED")["Restarts"] == "1"
    assert all(cluster.job(task)["Restarts"] == "0" for task in others)
    cluster.run("scancel", *others)
    texts = logs_of_shares(tmp_path)
    assert sum("is not finished (status 143) and goes back into the queue" in text for text in texts) == len(on_m1)
    assert sum("restart 1" in text for text in texts) == len(on_m1)


def logs_of_shares(folder: Path) -> list[str]:
    found = [path.read_text() for path in folder.glob("slurm-*-doge-prepare.out")]
    return found if len(found) == 3 else [""]


def node_state(cluster: Cluster, node: str) -> str:
    return cluster.run("sinfo", "-h", "-n", node, "-o", "%T").split()[0]


def test_without_one_of_its_nodes_it_waits_for_it_and_goes_on(project: Project, undisturbed: str) -> None:
    cluster, job = project.cluster, project.proxy("node_lost")
    project.wait_for_steps("node_lost", 70)
    cluster.kill_node("m2")
    wait_until(lambda: node_state(cluster, "m2").startswith("down"), "Slurm has noticed")
    cluster.start_node("m2")
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert_same(project, "node_lost", undisturbed)
