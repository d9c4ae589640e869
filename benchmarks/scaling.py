"""How the cost of DoGE's step grows with the number of domains k and of parameters P, and a fit to it.

    OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 benchmarks/scaling.py

For every k and P, in turns on one engine and one short sequence a domain and rank: a step that updates the weights, as
`train_proxy.train` makes it, and plain accumulation of as many backward passes. Prints JSON: seconds of both, what the
first adds, how long DoGE's own parts take in it (rows, norms, Gram matrix, weights, weighted sum; not the all-reduce,
in which a rank waits for the last one), and the least-squares fit of the sum of these parts to

    c0 + c1 (4k + 1) S / W + c2 k^2 S / W

S the bytes of a shard, W the bandwidth of a large copy in bytes a second. (4k + 1) S is what a step moves: every shard
read and written into its row, all rows read twice, their sum written. k^2 is the arithmetic of the Gram matrix.
With --selected 0.1 scores come from a tenth of each shard's columns, as with `doge.selection`; there is no fit then.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.proxy_step import Turns  # noqa: E402
from benchmarks.simple_doge import mean_loss  # noqa: E402
from doge_ds.config_sections import DogeConfig, ProxyTrainingConfig  # noqa: E402
from doge_ds.json_files import read_json_object  # noqa: E402
from doge_ds.reweight.doge import DogeWeights  # noqa: E402
from doge_ds.training import domain_gradients  # noqa: E402
from doge_ds.training.deepspeed_config import complete_deepspeed_config  # noqa: E402
from doge_ds.training.domain_gradients import DomainGradients  # noqa: E402
from doge_ds.training.engine import start_engine  # noqa: E402
from doge_ds.training.gradient_rows import squared_norm  # noqa: E402
from doge_ds.training.launch import Ranks, finish, quieten_libraries, read_ranks, start_process_group  # noqa: E402
from doge_ds.training.model import build_model, model_config, parameter_count  # noqa: E402

# GPT-2 shapes of about 1, 7 and 25 million parameters: layers, width, heads, vocabulary.
SHAPES = [(3, 128, 4, 4000), (6, 256, 8, 8000), (6, 512, 8, 12000)]
LENGTH = 32
PARTS = ("rows", "norms", "gram", "weights", "sum")  # norms of whole gradients, where scores come from a part only


def main() -> None:
    """Measure on all ranks; rank 0 prints."""
    options = _options()
    quieten_libraries()
    ranks = read_ranks()
    start_process_group(ranks)
    table = []
    for shape in SHAPES[: options.shapes]:
        engine = _engine(shape, options, ranks)
        table += [measure(engine, k, shape[-1], options) for k in options.domains]
        engine.destroy()
    if ranks.rank == 0:
        facts = {
            "benchmark": "scaling",
            "ranks": ranks.world_size,
            "tokens_a_domain_and_rank": LENGTH,
            "turns": options.turns,
            "selected": options.selected,
            "device": get_accelerator().device_name(),
            "cores": os.cpu_count(),
            "versions": {"torch": str(torch.__version__), "deepspeed": deepspeed.__version__},
        }
        fitted = {"fit": fit(table)} if options.selected == 1 else {}
        print(json.dumps({**facts, "table": table, **fitted}, indent=2))
    finish(0)


class UpdateStep:
    """A step that updates the weights, and the seconds of DoGE's own parts in it."""

    def __init__(self, engine: Any, k: int, selected: float) -> None:
        self.engine, self.names = engine, [f"domain{number}" for number in range(k)]
        doge = DogeConfig(target="all", preset="official")
        self.gradients = DomainGradients(engine, self.names, 0, 0, doge)
        if selected < 1:
            domain_gradients.squared_norm = self._timed("norms", squared_norm)
            self.gradients.select([(0, int(selected * sum(map(int, engine.optimizer.partition_size))))])
        self.weights = DogeWeights(self.names, self.names, doge)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        rows: Any = self.gradients._rows
        rows.put_train, rows.gram = self._timed("rows", rows.put_train), self._timed("gram", rows.gram)

    def step(self, tokens_of_step: torch.Tensor) -> None:
        """One step on [k, LENGTH], a sequence of each domain."""
        for name, tokens in zip(self.names, tokens_of_step.split(1), strict=True):
            self.gradients.collect(0, name, [tokens])
        update = self.gradients.reduce(stop=False)
        proposal = self._timed("weights", self.weights.propose)(update, 1e-4)
        self._timed("sum", self.gradients.apply)(proposal.coefficients)
        self.engine.step()
        self.weights.accept(proposal)

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            get_accelerator().synchronize()
            began = time.perf_counter()
            result = work(*arguments, **options)
            get_accelerator().synchronize()
            self.seconds[part] += time.perf_counter() - began
            return result

        return timed


def measure(engine: Any, k: int, vocabulary: int, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    tokens = torch.randint(0, vocabulary, (k, LENGTH), generator=torch.Generator().manual_seed(engine.global_rank))
    update, parts = UpdateStep(engine, k, options.selected), []

    def plain(tokens_of_step: torch.Tensor) -> None:
        for number, sequence in enumerate(tokens_of_step.split(1)):
            engine.set_gradient_accumulation_boundary(number == k - 1)
            engine.backward(mean_loss(engine, sequence.to(engine.device)) / k)
        engine.step()

    turns = Turns(options.turns, 1, [tokens] * (options.turns + 1))
    for turn in range(options.turns + 1):
        turns.copy()
        turns.take("plain", turn, plain)
        update.seconds = dict.fromkeys(PARTS, 0.0)
        turns.take("update", turn, update.step)
        parts.append(update.seconds)
    medians = {part: statistics.median(found[part] for found in parts[1:]) for part in PARTS}
    differences = [ours - theirs for ours, theirs in zip(turns.seconds["update"], turns.seconds["plain"], strict=True)]
    line = {
        "k": k,
        "parameters": sum(parameter.numel() for parameter in engine.module.parameters()),
        "shard_bytes": 4 * sum(map(int, engine.optimizer.partition_size)),
        "bandwidth": statistics.median(turns.bandwidths),
        "plain_seconds": statistics.median(turns.seconds["plain"]),
        "update_seconds": statistics.median(turns.seconds["update"]),
        "added_seconds": statistics.median(differences),
        "added_quartiles": statistics.quantiles(differences, n=4),
        "parts_seconds": medians,
        "sum_of_parts": statistics.median(sum(found.values()) for found in parts[1:]),
    }
    if engine.global_rank == 0:
        print(json.dumps(line), file=sys.stderr, flush=True)
    return line


def fit(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Least squares of relative errors, so that small models count as much as large ones."""
    seconds = np.array([line["sum_of_parts"] for line in table])
    of_bytes = np.array([(4 * line["k"] + 1) * line["shard_bytes"] / line["bandwidth"] for line in table])
    of_products = np.array([line["k"] ** 2 * line["shard_bytes"] / line["bandwidth"] for line in table])
    costs = np.stack([np.ones_like(seconds), of_bytes, of_products], axis=1)
    coefficients = np.linalg.lstsq(costs / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
    errors = costs @ coefficients / seconds - 1
    return {
        **dict(zip(("c0", "c1", "c2"), coefficients.tolist(), strict=True)),
        "bandwidth": statistics.median(line["bandwidth"] for line in table),
        "largest_relative_error": float(np.abs(errors).max()),
        "median_relative_error": float(np.median(np.abs(errors))),
    }


def _engine(shape: tuple[int, int, int, int], options: argparse.Namespace, ranks: Ranks) -> Any:
    layers, width, heads, vocabulary = shape
    training = ProxyTrainingConfig(steps=1000, sequences_per_domain=ranks.world_size, learning_rate=1e-4)
    config = complete_deepspeed_config(read_json_object(options.deepspeed_config), training, 2, 1, 1, ranks)
    settings = {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads}
    model = model_config(settings, vocabulary, 0, LENGTH)
    if ranks.rank == 0:
        print(f"{parameter_count(model):,} parameters", file=sys.stderr)
    return start_engine(build_model(model, config, training, None), config, training)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 7, 30, 100], help="values of k")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="the smallest so many of 1, 7, 25 million")
    parser.add_argument("--selected", type=float, default=1.0, help="share of the columns that scores come from")
    parser.add_argument("--turns", type=int, default=7, help="of each side, one more to warm up")
    parser.add_argument("--deepspeed_config", type=Path, default=ROOT / "ds_configs/zero2_cpu.json")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
