"""What a step of the base loop costs beside the shortest DeepSpeed ZeRO-3 loop that one could write by hand.

    OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 benchmarks/base_step.py
    deepspeed --num_accelerators 8 benchmarks/base_step.py --config ds_configs/runs/base_124m.json --vocabulary 50257

Both sides train the same model under the same DeepSpeed configuration on the same tokens in the same processes, in
turns of a few steps: `train_base.train` as it is (memory-mapped store, sample order, losses per domain, metrics.jsonl,
TensorBoard, progress line), and a loop over tokens that are in memory already and that keeps no books at all. Prints
JSON: seconds a step of each turn, their medians, and the median ratio of neighbouring turns.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from doge_ds import train_base  # noqa: E402
from doge_ds.command_line import RunArguments  # noqa: E402
from doge_ds.training.engine import start_engine  # noqa: E402
from doge_ds.training.launch import quieten_libraries, read_ranks, start_process_group  # noqa: E402
from doge_ds.training.model import build_model, parameter_count  # noqa: E402
from doge_ds.training.run import Run  # noqa: E402
from tests.stores import make_store  # noqa: E402


def main() -> None:
    """Measure on all ranks; rank 0 prints."""
    options = _options()
    quieten_libraries()
    ranks = read_ranks()
    folder = Path(options.folder or tempfile.gettempdir()) / f"base_step_{os.environ.get('MASTER_PORT', 'alone')}"
    if ranks.local_rank == 0:
        domains = {name: _tokens(name, options) for name in ("a", "b", "c", "d", "e")}
        make_store(folder / "store", domains, vocabulary_size=options.vocabulary)
    start_process_group(ranks)
    # One step more than is measured: the last one saves a checkpoint.
    steps = (options.turns + 1) * options.steps_a_turn + 1
    settings = [f"training.steps={steps}", f"training.checkpoint_every={steps}", f"data.path={folder / 'store'}"]
    settings += ["data.train_domains=null", "data.max_epochs=1e9", "training.warmup_steps=0"]
    arguments = RunArguments(options.config, settings, folder / "run", "never", "uniform")
    job = train_base.check(arguments)
    turns = Turns(job, options.turns, options.steps_a_turn)
    train_base.Run = turns.interleaved_run()  # type: ignore[misc, assignment]
    train_base.train(job)
    if ranks.rank == 0:
        print(json.dumps(_results(turns, job, options), indent=2))
    if ranks.local_rank == 0:
        shutil.rmtree(folder)


class Turns:
    """The two loops, one turn each at a time."""

    def __init__(self, job: Any, turns: int, steps_a_turn: int) -> None:
        self.turns, self.steps_a_turn = turns, steps_a_turn
        self.seconds: dict[str, list[float]] = {"doge_ds": [], "by_hand": []}
        model = build_model(job.model, job.deepspeed_config, job.config.training, None)
        self._engine = start_engine(model, job.deepspeed_config, job.config.training)
        batches = job.loader.batches(0)
        self._batches = [
            [tokens for tokens, _ in next(batches).micro_batches] for _ in range((turns + 1) * steps_a_turn)
        ]

    def by_hand(self, turn: int) -> None:
        """A turn of the shortest loop."""
        engine = self._engine
        for micro_batches in self._batches[turn * self.steps_a_turn : (turn + 1) * self.steps_a_turn]:
            for tokens in micro_batches:
                tokens = tokens.to(engine.device)
                logits = engine(input_ids=tokens[:, :-1], use_cache=False).logits
                loss = cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
                engine.backward(loss)
                engine.step()

    def interleaved_run(turns) -> type[Run]:
        """The product's Run, but every few steps the other loop has its turn."""

        class InterleavedRun(Run):
            def steps(self) -> Iterator[int]:
                began = time.perf_counter()
                for step in super().steps():
                    turn, rest = divmod(step, turns.steps_a_turn)
                    if rest == 0:
                        turns._end_turn("doge_ds", turn - 1, began)
                        if turn <= turns.turns:
                            began = time.perf_counter()
                            turns.by_hand(turn)
                            turns._end_turn("by_hand", turn, began)
                        began = time.perf_counter()
                    yield step

        return InterleavedRun

    def _end_turn(self, side: str, turn: int, began: float) -> None:
        """Note the time of a turn; the first of each side warms up."""
        get_accelerator().synchronize()
        deepspeed.comm.barrier()
        if turn >= 1:
            self.seconds[side].append((time.perf_counter() - began) / self.steps_a_turn)


def _tokens(name: str, options: argparse.Namespace) -> np.ndarray:
    """Random token ids: what a step costs does not depend on them."""
    generator = np.random.default_rng([ord(letter) for letter in name])
    return generator.integers(0, options.vocabulary, 4_000_000)


def _results(turns: Turns, job: Any, options: argparse.Namespace) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(turns.seconds["doge_ds"], turns.seconds["by_hand"], strict=True)]
    training = job.config.training
    return {
        "benchmark": "base_step",
        "config": str(options.config),
        "parameters": parameter_count(job.model),
        "ranks": job.ranks.world_size,
        "sequences_a_step": training.global_batch_size,
        "sequence_length": job.config.data.sequence_length,
        "log_every": training.log_every,
        "device": get_accelerator().device_name(),
        "cores": os.cpu_count(),
        "versions": {"torch": str(torch.__version__), "deepspeed": deepspeed.__version__},
        "turns": turns.turns,
        "steps_a_turn": turns.steps_a_turn,
        "seconds_a_step": turns.seconds,
        "median_seconds_a_step": {side: statistics.median(found) for side, found in turns.seconds.items()},
        "median_ratio": statistics.median(ratios),
        "quartiles_of_the_ratio": statistics.quantiles(ratios, n=4),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "ds_configs/runs/demo_base.json")
    parser.add_argument("--turns", type=int, default=15, help="of each side, one more to warm up")
    parser.add_argument("--steps_a_turn", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=6000)
    parser.add_argument("--folder", help="where the store and the run are written; on all nodes the same")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
