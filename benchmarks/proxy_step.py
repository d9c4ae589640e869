"""What a step of the proxy costs beside plain DeepSpeed ZeRO-2, and DoGE written the simple way beside plain torch.

    OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 benchmarks/proxy_step.py
    ... benchmarks/proxy_step.py --sequences 1 --sequence_length 128 --steps_a_turn 2
    ... benchmarks/proxy_step.py --memory plain     and     --memory doge_ds
    ... benchmarks/proxy_step.py --memory doge_ds --doge '{"selection": {"steps": 1, "tensors": 10}}'

Sides, in turns of a step or two, in the same processes, with the same model and on the same tokens:

    plain    DeepSpeed by hand, one accumulation step for each domain; tokens in memory, no books kept
    at_once  the same with the tokens of all domains in one accumulation step
    doge_ds  `train_proxy.train` as it is: store, loader, target `all`, preset `official`, metrics.jsonl, TensorBoard
    simple   DoGE in one process, as it is often written: see simple_doge.py; then rank 0 alone, in turns with
    single   plain torch in one process, one micro-batch for each domain

Prints JSON: seconds a step of each turn, medians, ratios turn by turn, collectives of a step, and the seconds that
doge_ds adds to plain against those that its bytes cost at the bandwidth of a large copy, measured between the turns.
With --memory one side runs alone, and its peak resident memory on each rank is printed.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.simple_doge import SimpleDoge, mean_loss  # noqa: E402
from doge_ds import train_proxy  # noqa: E402
from doge_ds.command_line import RunArguments  # noqa: E402
from doge_ds.training.deepspeed_config import complete_deepspeed_config  # noqa: E402
from doge_ds.training.engine import start_engine  # noqa: E402
from doge_ds.training.launch import Ranks, finish, quieten_libraries, read_ranks, start_process_group  # noqa: E402
from doge_ds.training.model import build_model, parameter_count  # noqa: E402
from doge_ds.training.run import Run  # noqa: E402
from tests.distributed.collectives import Collective, CollectiveRecorder  # noqa: E402
from tests.stores import make_store  # noqa: E402

MEMORY_STEPS = 4
COPIED_NUMBERS = 2**26  # 256 MB: far more than caches hold


def main() -> None:
    """Measure on all ranks; rank 0 prints."""
    options = _options()
    quieten_libraries()
    ranks = read_ranks()
    folder = Path(options.folder or tempfile.gettempdir()) / f"proxy_step_{os.environ.get('MASTER_PORT', 'alone')}"
    steps = MEMORY_STEPS + 1 if options.memory else (options.turns + 1) * options.steps_a_turn + 1
    if ranks.local_rank == 0:
        _write_store_and_config(folder, options, ranks, steps)
    start_process_group(ranks)
    job = train_proxy.check(RunArguments(folder / "proxy.json", [], folder / "run", "never", ""))
    results = measure_memory(job, options.memory) if options.memory else measure_time(job, options)
    if ranks.rank == 0:
        print(json.dumps({**_facts(job, options), **results}, indent=2))
    if ranks.local_rank == 0:
        shutil.rmtree(folder)
    finish(0)


class Plain:
    """DeepSpeed as its users write it: as many accumulation steps as there are micro-batches."""

    def __init__(self, job: train_proxy.ProxyJob, domains_at_once: int) -> None:
        training, domains = job.config.training, len(job.train_domains)
        size = training.sequences_per_domain // job.ranks.world_size * domains_at_once
        config = complete_deepspeed_config(
            job.config.deepspeed, training, 2, size, domains // domains_at_once, job.ranks
        )
        self.size = size
        self.engine = start_engine(build_model(job.model, config, training, None), config, training)

    def step(self, tokens_of_step: torch.Tensor) -> None:
        """One optimizer step on [sequences, length]."""
        engine = self.engine
        for tokens in tokens_of_step.split(self.size):
            engine.backward(mean_loss(engine, tokens.to(engine.device)))
            engine.step()


def tokens_of_steps(job: train_proxy.ProxyJob) -> list[torch.Tensor]:
    """What this rank reads in every step, domain after domain, each [sequences, length]."""
    steps = (job.loader.domain_batches(step) for step in range(job.config.training.steps))
    return [torch.cat([tokens for _, batch in batches for tokens in batch]) for batches in steps]


class Turns:
    """Every side's turns: seconds a step, and in the first turn, which is not counted, its collectives."""

    def __init__(self, turns: int, steps_a_turn: int, tokens: list[torch.Tensor]) -> None:
        self.turns, self.steps_a_turn, self._tokens = turns, steps_a_turn, tokens
        self.seconds: dict[str, list[float]] = {}
        self.collectives: dict[str, dict[str, float]] = {}
        self.bandwidths: list[float] = []
        self._from, self._to = torch.ones(2, COPIED_NUMBERS, device=get_accelerator().device_name())

    def take(self, side: str, turn: int, step: Callable[[torch.Tensor], None]) -> None:
        """A turn of a side that is a function of a step's tokens."""
        with self.timed(side, turn):
            for tokens in self._tokens[turn * self.steps_a_turn : (turn + 1) * self.steps_a_turn]:
                step(tokens)

    @contextmanager
    def timed(self, side: str, turn: int) -> Iterator[None]:
        """Around a turn, until the last rank has ended it."""
        recorder = CollectiveRecorder() if turn == 0 else nullcontext()
        deepspeed.comm.barrier()
        began = time.perf_counter()
        with recorder:
            yield
        get_accelerator().synchronize()
        deepspeed.comm.barrier()
        seconds = (time.perf_counter() - began) / self.steps_a_turn
        if isinstance(recorder, CollectiveRecorder):
            if recorder.calls:
                self.collectives[side] = count_collectives(recorder.calls, self.steps_a_turn)
        else:
            self.seconds.setdefault(side, []).append(seconds)
        if deepspeed.comm.get_rank() == 0:  # a measurement that is stopped is not lost
            print(f"turn {turn}: {side} {seconds:.4f} s", file=sys.stderr, flush=True)

    def copy(self, times: int = 3) -> None:
        """Bytes a second of large copies on all ranks at once, read and written ones."""
        for _ in range(times):
            deepspeed.comm.barrier()
            began = time.perf_counter()
            self._to.copy_(self._from)
            get_accelerator().synchronize()
            self.bandwidths.append(2 * self._to.nbytes / (time.perf_counter() - began))

    def interleaved_run(turns, others: dict[str, Callable[[torch.Tensor], None]]) -> type[Run]:
        """The product's Run, but before each of its turns the other sides have theirs."""

        class InterleavedRun(Run):
            def steps(self) -> Iterator[int]:
                steps = super().steps()
                for turn in range(turns.turns + 1):
                    turns.copy()
                    for side, step in others.items():
                        turns.take(side, turn, step)
                    with turns.timed("doge_ds", turn):
                        for _ in range(turns.steps_a_turn):
                            yield next(steps)
                yield from steps  # the last step, which saves a checkpoint

        return InterleavedRun


def count_collectives(calls: list[Collective], steps: int) -> dict[str, float]:
    """Calls and bytes a step, gradients' apart: all reductions of more than a few numbers."""
    gradients = [call for call in calls if "reduce" in call.name and call.numbers > 20_000]
    return {
        "gradient_reductions": len(gradients) / steps,
        "gradient_bytes": sum(call.bytes for call in gradients) / steps,
        "other_collectives": (len(calls) - len(gradients)) / steps,
        "other_bytes": (sum(call.bytes for call in calls) - sum(call.bytes for call in gradients)) / steps,
    }


def measure_time(job: train_proxy.ProxyJob, options: argparse.Namespace) -> dict[str, Any]:
    """All sides; the first three on all ranks, the last two on rank 0 while the others wait."""
    tokens = tokens_of_steps(job)
    turns = Turns(options.turns, options.steps_a_turn, tokens)
    others = {"plain": Plain(job, 1).step, "at_once": Plain(job, len(job.train_domains)).step}
    train_proxy.Run = turns.interleaved_run(others)  # type: ignore[misc, assignment]
    train_proxy.train(job)
    alone = {"single": SimpleDoge(job).plain_step, "simple": SimpleDoge(job).step}
    for turn in range(options.turns + 1):
        for side, step in alone.items():
            turns.take(side, turn, step if job.ranks.rank == 0 else _do_nothing)
    return {"turns": options.turns, "steps_a_turn": options.steps_a_turn, **summarize(job, turns)}


def summarize(job: train_proxy.ProxyJob, turns: Turns) -> dict[str, Any]:
    """Medians, ratios of neighbouring turns, and added seconds beside those that the moved bytes cost (collective)."""
    seconds = turns.seconds
    bandwidth = torch.tensor([statistics.median(turns.bandwidths)])
    deepspeed.comm.all_reduce(bandwidth, op=deepspeed.comm.ReduceOp.MIN)
    rows, shard = len(job.loader.row_names), shard_bytes(job)
    # Each shard is read and written into its row; all rows are read for the Gram matrix, and read for the sum, which
    # is written.
    moved = (4 * rows + 1) * shard
    differences = [ours - theirs for ours, theirs in zip(seconds["doge_ds"], seconds["plain"], strict=True)]
    added, cost = statistics.median(differences), moved / float(bandwidth)
    return {
        "median_seconds_a_step": {side: statistics.median(found) for side, found in seconds.items()},
        "doge_ds/plain": ratio(seconds["doge_ds"], seconds["plain"]),
        "doge_ds/at_once": ratio(seconds["doge_ds"], seconds["at_once"]),
        "simple/single": ratio(seconds["simple"], seconds["single"]),
        "added_seconds": {"median": added, "quartiles": statistics.quantiles(differences, n=4)},
        "bytes_moved": moved,
        "bandwidth": float(bandwidth),
        "seconds_of_bytes": cost,
        "added_seconds/seconds_of_bytes": added / cost,
        "collectives_a_step": turns.collectives,
        "seconds_a_step": seconds,
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Of neighbouring turns."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "quartiles": statistics.quantiles(ratios, n=4)}


def _do_nothing(_: torch.Tensor) -> None:
    """What a rank does while rank 0 is alone."""


def shard_bytes(job: train_proxy.ProxyJob) -> int:
    """One rank's part of one gradient in fp32."""
    return 4 * -(-parameter_count(job.model) // job.ranks.world_size)


def measure_memory(job: train_proxy.ProxyJob, side: str) -> dict[str, Any]:
    """A few steps of one side; peak resident memory of each rank, in bytes, before the checkpoint."""
    if side == "plain":
        plain = Plain(job, 1)
        for tokens in tokens_of_steps(job)[:MEMORY_STEPS]:
            plain.step(tokens)
        peaks = _gather_peaks(job)
    else:
        peaks = []

        class MeasuredRun(Run):
            def steps(self) -> Iterator[int]:
                for step in super().steps():
                    if step == MEMORY_STEPS:
                        peaks.extend(_gather_peaks(job))
                    yield step

        train_proxy.Run = MeasuredRun  # type: ignore[misc]
        train_proxy.train(job)
    return {"side": side, "peak_bytes": peaks, "rows": len(job.loader.row_names), "shard_bytes": shard_bytes(job)}


def _gather_peaks(job: train_proxy.ProxyJob) -> list[int]:
    peaks: list[int] = [0] * job.ranks.world_size
    torch.distributed.all_gather_object(peaks, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peaks


def _write_store_and_config(folder: Path, options: argparse.Namespace, ranks: Ranks, steps: int) -> None:
    """Random tokens (what a step costs does not depend on them), enough for one epoch, and the run's configuration."""
    length, sequences = options.sequence_length, options.sequences * ranks.world_size
    domains = {
        f"domain{number}": np.random.default_rng(number).integers(0, options.vocabulary, sequences * steps * length)
        for number in range(options.domains)
    }
    make_store(folder / "store", domains, vocabulary_size=options.vocabulary)
    config = {
        "model": {"model_type": "gpt2", "n_layer": options.layers, "n_embd": options.width, "n_head": options.heads},
        "data": {"path": str(folder / "store"), "sequence_length": length},
        "training": {
            "steps": steps,
            "sequences_per_domain": sequences,
            "learning_rate": 1e-4,
            "checkpoint_every": steps,
        },
        "doge": {"target": "all", "preset": "official", **options.doge},
        "deepspeed": str(options.deepspeed_config.absolute()),
    }
    (folder / "proxy.json").write_text(json.dumps(config))


def _facts(job: train_proxy.ProxyJob, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "proxy_step",
        "parameters": parameter_count(job.model),
        "domains": options.domains,
        "doge": options.doge,
        "sequences_a_domain_and_rank": options.sequences,
        "sequence_length": options.sequence_length,
        "ranks": job.ranks.world_size,
        "device": get_accelerator().device_name(),
        "cores": os.cpu_count(),
        "versions": {"torch": str(torch.__version__), "deepspeed": deepspeed.__version__},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=8, help="of each domain on each rank")
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--domains", type=int, default=7)
    parser.add_argument("--layers", type=int, default=6, help="of a GPT-2; by default it has 25 million parameters")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=12000)
    parser.add_argument("--doge", type=json.loads, default={}, help="JSON of further options of `doge`")
    parser.add_argument("--deepspeed_config", type=Path, default=ROOT / "ds_configs/zero2_cpu.json")
    parser.add_argument("--turns", type=int, default=15, help="of each side, one more to warm up")
    parser.add_argument("--steps_a_turn", type=int, default=1)
    parser.add_argument("--memory", choices=["plain", "doge_ds"], help="measure memory of this side instead of time")
    parser.add_argument("--folder", help="where the store and the run are written; on all nodes the same")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
