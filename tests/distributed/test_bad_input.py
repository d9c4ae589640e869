"""A user's mistake on several ranks: one line, once, status 2, at once, on every way to start."""

import subprocess
import sys
import time
from pathlib import Path

from doge_ds.training.launch import free_port
from tests.distributed.ranks import ROOT, Ranks, deepspeed, environment
from tests.distributed.small_runs import small_store, write_config


def error_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "error: " in line and "launch.py" not in line]


def test_the_deepspeed_launcher_passes_status_2_on_and_the_line_comes_once(tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", small_store(tmp_path / "store"), "proxy")
    arguments = ["--config", str(config), "--output", str(tmp_path / "run"), "--set", "training.stps=4"]
    done = deepspeed(2, "doge_ds/train_proxy.py", *arguments)
    assert done.returncode == 2
    lines = error_lines(done.stdout)
    assert len(lines) == 1, done.stdout
    assert "training.stps: unknown key; did you mean 'steps'?" in lines[0]
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_torchrun_works_and_its_ranks_end_together(tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", small_store(tmp_path / "store"), "base")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "doge_ds/train_base.py", "--config", str(config)]
    command += ["--output", str(tmp_path / "run"), "--mixture", str(tmp_path / "missing.json")]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0  # torchrun has a status of its own
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "missing.json: cannot be read (No such file or directory)" in lines[0]


def test_an_error_on_one_rank_alone_is_told_by_that_rank(tmp_path: Path) -> None:
    """As when only one node cannot see a file."""
    config = write_config(tmp_path / "run.json", small_store(tmp_path / "store"), "proxy")
    began = time.monotonic()
    ranks = Ranks(1, "doge_ds/train_proxy.py", "--config", str(tmp_path / "nowhere.json"), first_rank=1, world_size=2)
    statuses, printed = ranks.finish()
    assert statuses == [2]
    assert "on rank 1: error: " in printed
    assert "nowhere.json: cannot be read" in printed
    assert time.monotonic() - began < 60
    assert config.exists()
