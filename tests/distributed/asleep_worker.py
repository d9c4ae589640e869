"""Run by two ranks: one of them falls asleep in its own code, while the other waits for it.

torchrun --nproc_per_node 2 tests/distributed/asleep_worker.py
"""

import time

import torch

from doge_ds.training.launch import read_ranks, run_program, start_process_group
from doge_ds.training.watchdog import Watchdog


def fall_asleep() -> None:
    time.sleep(600)


def main() -> int:
    ranks = read_ranks()
    start_process_group(ranks)
    with Watchdog(ranks, timeout=3.0) as watchdog:
        watchdog.mark("in step 7")
        if ranks.rank == 1:
            fall_asleep()
        torch.distributed.all_reduce(torch.ones(1))
    return 0


if __name__ == "__main__":
    run_program(main)
