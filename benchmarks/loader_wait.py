"""What part of a step of the proxy goes into its batches.

    OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 benchmarks/loader_wait.py

`train_proxy.train` as it is, with the demo's configuration, on random tokens. Prints JSON, of the slowest rank each:
seconds a step, seconds in which the loop waits for its batches, and seconds of CPU of the thread that prepares them.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from doge_ds import train_proxy  # noqa: E402
from doge_ds.command_line import RunArguments  # noqa: E402
from doge_ds.data.loader import DomainBatches, ProxyLoader  # noqa: E402
from doge_ds.training.launch import finish, quieten_libraries, read_ranks, start_process_group  # noqa: E402
from doge_ds.training.model import parameter_count  # noqa: E402
from tests.stores import make_store  # noqa: E402

DOMAINS = ["python", "cpp", "docstrings", "yaml", "licences", "descriptions"]  # the demo's
WARM_UP = 20


def main() -> None:
    """Measure on all ranks; rank 0 prints."""
    options = _options()
    quieten_libraries()
    ranks = read_ranks()
    folder = Path(options.folder or tempfile.gettempdir()) / f"loader_wait_{os.environ.get('MASTER_PORT', 'alone')}"
    if ranks.local_rank == 0:
        domains = {name: np.random.default_rng(len(name)).integers(0, 6000, 2_000_000) for name in DOMAINS}
        make_store(folder / "store", domains, vocabulary_size=6000)
    start_process_group(ranks)
    steps = WARM_UP + options.steps + 1
    settings = [f"training.steps={steps}", f"training.checkpoint_every={steps}", f"data.path={folder / 'store'}"]
    settings += ["data.train_domains=null", "data.max_epochs=1e9", "training.warmup_steps=0"]
    job = train_proxy.check(RunArguments(options.config, settings, folder / "run", "never", ""))
    clock = Clock(job.loader)
    train_proxy.train(job)
    results = clock.results(options.steps)
    if ranks.rank == 0:
        facts = {
            "benchmark": "loader_wait",
            "config": options.config.name,
            "parameters": parameter_count(job.model),
            "rows": len(job.loader.row_names),
            "ranks": ranks.world_size,
            "steps": options.steps,
            "cores": os.cpu_count(),
            "device": get_accelerator().device_name(),
            "versions": {"torch": str(torch.__version__), "deepspeed": deepspeed.__version__},
        }
        print(json.dumps({**facts, **results}, indent=2))
    if ranks.local_rank == 0:
        shutil.rmtree(folder)
    finish(0)


class Clock:
    """Times a loader's calls, in the loop and in its thread."""

    def __init__(self, loader: ProxyLoader) -> None:
        self._begun: list[float] = []
        self._waited: list[float] = []
        self._worked: list[float] = []
        domain_batches, make = loader.domain_batches, loader._make

        def timed_batches(step: int) -> DomainBatches:
            self._begun.append(time.perf_counter())
            batches = domain_batches(step)
            self._waited.append(time.perf_counter() - self._begun[-1])
            return batches

        def timed_make(number: int) -> DomainBatches:
            began = time.thread_time()
            batches = make(number)
            self._worked.append(time.thread_time() - began)
            return batches

        loader.domain_batches, loader._make = timed_batches, timed_make  # type: ignore[method-assign]

    def results(self, steps: int) -> dict[str, Any]:
        """Means over the steps after warming up, and the parts of a step's time that they are (collective)."""
        measured = slice(WARM_UP, WARM_UP + steps)
        seconds = np.diff(self._begun)[measured]
        parts = (seconds, self._waited[measured], self._worked[measured])
        means = torch.tensor([float(np.mean(part)) for part in parts], device=get_accelerator().device_name())
        deepspeed.comm.all_reduce(means, op=deepspeed.comm.ReduceOp.MAX)
        step, waited, worked = means.tolist()
        return {
            "seconds_a_step": step,
            "median_seconds_a_step": statistics.median(seconds.tolist()),
            "seconds_of_waiting": waited,
            "seconds_of_the_thread": worked,
            "waiting/step": waited / step,
            "thread/step": worked / step,
        }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "ds_configs/runs/demo_proxy.json")
    parser.add_argument("--steps", type=int, default=200, help="that are measured, after warming up")
    parser.add_argument("--folder", help="where the store and the run are written; on all nodes the same")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
