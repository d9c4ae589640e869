"""One rank alone: what a run of a training program really holds, beyond what its libraries do.

    python tests/distributed/memory_worker.py PROGRAM WARM_UP.json CONFIG.json FOLDER

A small run first loads and starts all that any run does. What the process holds then is subtracted from the most that
it holds during the second run, the checkpoint at its end included.
"""

import gc
import json
import resource
import sys
from pathlib import Path

from doge_ds import train_base, train_proxy
from doge_ds.command_line import read_run_arguments
from doge_ds.training.launch import finish, quieten_libraries, read_ranks, start_process_group
from doge_ds.training.watchdog import Watchdog

PROGRAMS = {"proxy": train_proxy, "base": train_base}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(program: str, warm_up: str, config: str, folder: Path) -> None:
    quieten_libraries()
    ranks = read_ranks()
    mixture = ["--mixture", "uniform"] if program == "base" else []
    before = 0
    for name, path in (("warm_up", warm_up), ("run", config)):
        words = ["--config", path, "--output", str(folder / name), *mixture]
        job = PROGRAMS[program].check(read_run_arguments("", words, needs_mixture=program == "base"))
        if name == "warm_up":
            start_process_group(ranks)
        else:
            gc.collect()
            before = resident_bytes()
        with Watchdog(ranks, job.config.training.rank_timeout) as watchdog:
            assert PROGRAMS[program].train(job, watchdog)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"before": before, "peak": peak}), file=sys.stderr)
    (folder / "memory.json").write_text(json.dumps({"before": before, "peak": peak}))
    finish(0)


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
