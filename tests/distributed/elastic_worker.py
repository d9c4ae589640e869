"""Run by every rank: a proxy run and a base run go on, up to about a step, in one process group.

torchrun --nproc_per_node W tests/distributed/elastic_worker.py FOLDER STEP [SETTING ...]
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import torch

from doge_ds import train_base, train_proxy
from doge_ds.command_line import read_run_arguments
from doge_ds.training.launch import quieten_libraries, read_ranks, start_process_group
from doge_ds.training.watchdog import Watchdog


def stop_after(metrics: Path, lines: int) -> None:
    """Ask this process to stop once that many steps are logged."""

    def watch() -> None:
        while not metrics.exists() or metrics.read_text().count("\n") < lines:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=watch, daemon=True).start()


def go_on(program: ModuleType, stage: str, output: Path, step: int, settings: list[str]) -> bool:
    """Whether the run came to its end."""
    arguments = ["--config", str(output.parent / f"{stage}.json"), "--output", str(output), "--set", *settings]
    needs_mixture = stage == "base"
    arguments += ["--mixture", str(output.parent / "mixture.json")] if needs_mixture else []
    job = program.check(read_run_arguments("", arguments, needs_mixture))
    if job.ranks.rank == 0:
        stop_after(output / "metrics.jsonl", step)
    with Watchdog(job.ranks, job.config.training.rank_timeout) as watchdog:
        return bool(program.train(job, watchdog))


def main() -> None:
    quieten_libraries()
    folder, step, settings = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    ranks = read_ranks()
    start_process_group(ranks)
    for stage, program in (("proxy", train_proxy), ("base", train_base)):
        go_on(program, stage, folder / f"{stage}_elastic", step, settings)
        if ranks.world_size == 1:
            assert go_on(program, stage, folder / f"{stage}_alone", 10**6, settings)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
