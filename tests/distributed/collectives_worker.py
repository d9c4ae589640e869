"""Run by every rank: one step of each kind, and every collective in it.

    torchrun --nproc_per_node W tests/distributed/collectives_worker.py SCENARIOS.json FOLDER

Each step is the second of its kind: the first may set things up.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from doge_ds.config_sections import DogeConfig, ProxyTrainingConfig
from doge_ds.reweight.doge import DogeWeights
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.domain_gradients import DomainGradients
from doge_ds.training.engine import cut_into_micro_batches, start_engine
from doge_ds.training.launch import Ranks, finish, quieten_libraries, read_ranks, start_process_group
from doge_ds.training.model import build_model, model_config, sequence_losses
from tests.distributed.collectives import record_collectives
from tests.distributed.scenarios import batches_of


class Steps:
    """One scenario's model and tokens, for steps of the proxy and of plain DeepSpeed."""

    def __init__(self, scenario: dict, ranks: Ranks) -> None:
        self.scenario, self.ranks = scenario, ranks
        self.training = ProxyTrainingConfig.model_validate(scenario["training"])
        self.size, self.count = cut_into_micro_batches(
            "sequences_per_domain",
            self.training.sequences_per_domain,
            self.training.micro_batch_size,
            ranks.world_size,
        )
        share = slice(ranks.rank * self.size * self.count, (ranks.rank + 1) * self.size * self.count)
        self.batches = [
            (name, tokens[share].split(self.size))
            for name, tokens in zip(scenario["rows"], batches_of(scenario, 0), strict=True)
        ]
        self.train_batches = self.batches[: scenario["train_rows"]]

    def engine(self, accumulation_steps: int) -> Any:
        scenario, training = self.scenario, self.training
        config = complete_deepspeed_config(
            scenario["deepspeed"], training, 2, self.size, accumulation_steps, self.ranks
        )
        shape = model_config(scenario["model"], scenario["vocabulary"], 0, scenario["length"])
        return start_engine(build_model(shape, config, training, pretrained=None), config, training)

    def proxy(self) -> dict[str, list]:
        """A step that updates the weights and one between updates, as `train_proxy.train` makes them."""
        rows, train_rows = self.scenario["rows"], self.scenario["train_rows"]
        doge, engine = DogeConfig.model_validate(self.scenario["doge"]), self.engine(1)
        gradients = DomainGradients(engine, rows[:train_rows], len(rows) - train_rows, 0, doge)
        weights = DogeWeights(rows[:train_rows], rows, doge)

        def update() -> None:
            for name, micro_batches in self.batches:
                gradients.collect(0, name, micro_batches)
            summary = gradients.reduce(stop=False)
            proposal = weights.propose(summary, 0.01)
            gradients.apply(proposal.coefficients)
            engine.step()
            weights.accept(proposal)

        def between() -> None:
            coefficients = weights.coefficients([name for name, _ in self.train_batches])
            gradients.train(0, self.train_batches, coefficients, stop=False)
            engine.step()

        update()
        return {
            "update": record_collectives(update),
            "between": [record_collectives(between) for _ in range(2)][1],
            "parameters": sum(parameter.numel() for parameter in engine.module.parameters()),
        }

    def plain(self, rows: int) -> list:
        """A step of DeepSpeed alone with as many backward passes as these rows need."""
        micro_batches = [tokens for _, batch in self.batches[:rows] for tokens in batch]
        engine = self.engine(len(micro_batches))

        def step() -> None:
            for tokens in micro_batches:
                engine.backward(sequence_losses(engine, tokens).mean())
                engine.step()

        return [record_collectives(step) for _ in range(2)][1]


def main() -> None:
    quieten_libraries()
    ranks = read_ranks()
    start_process_group(ranks)
    scenarios, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for scenario in scenarios:
        steps = Steps(scenario, ranks)
        found = steps.proxy()
        found["plain_update"] = steps.plain(len(steps.batches))
        found["plain_between"] = steps.plain(len(steps.train_batches))
        (folder / f"{scenario['name']}.{ranks.rank}.json").write_text(json.dumps(found))
        torch.distributed.barrier()
    finish(0)


if __name__ == "__main__":
    main()
