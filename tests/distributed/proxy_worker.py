"""Run by every rank under torchrun: trains proxies on given tokens and writes down everything that happened.

    torchrun --nproc_per_node W tests/distributed/proxy_worker.py SCENARIOS.json FOLDER

One start serves many scenarios: a start costs 15 s, a scenario one or two.
"""

import json
import sys
from pathlib import Path

import torch

from doge_ds.config import DogeConfig, ProxyTrainingConfig
from doge_ds.reweight.doge import DomainWeights
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.domain_gradients import DomainGradients
from doge_ds.training.engine import cut_into_micro_batches, start_engine
from doge_ds.training.launch import Ranks, quieten_libraries, read_ranks, start_process_group
from doge_ds.training.model import build_model, model_config
from tests.distributed.scenarios import batches_of, freeze


def run(scenario: dict, ranks: Ranks, folder: Path) -> None:
    rows, train_rows = scenario["rows"], scenario["train_rows"]
    training = ProxyTrainingConfig.model_validate(scenario["training"])
    doge = DogeConfig.model_validate(scenario["doge"])
    size, count = cut_into_micro_batches(
        "sequences_per_domain", training.sequences_per_domain, training.micro_batch_size, ranks.world_size
    )
    config = complete_deepspeed_config(scenario["deepspeed"], training, 2, size, 1, ranks)
    shape = model_config(scenario["model"], scenario["vocabulary"], 0, scenario["length"])
    model = build_model(shape, config, training, pretrained=None)
    freeze(model, scenario.get("frozen", ""))
    if ranks.rank == 0:
        torch.save(model.state_dict(), folder / f"{scenario['name']}.initial.pt")
    engine = start_engine(model, config, training)
    gradients = DomainGradients(engine, rows, train_rows, seed=training.seed)
    weights = DomainWeights(rows[:train_rows], rows, doge)
    history: dict[str, list] = {"weights": [], "losses": [], "gram": [], "applied": [], "count": []}
    for step in range(training.steps):
        for row, tokens in zip(rows, batches_of(scenario, step), strict=True):
            mine = tokens[ranks.rank * size * count :][: size * count]
            gradients.collect(step, row, mine.split(size))
        if step == scenario.get("poisoned_step"):
            gradients._rows[-1, 0] = float("nan")
        summary = gradients.reduce(stop=False)
        proposal = weights.propose(summary.gram, engine.get_lr()[0])
        gradients.apply(proposal.coefficients)
        engine.step()
        if engine.was_step_applied():
            weights.accept(proposal)
        history["weights"].append(list(weights.current().values()))
        history["losses"].append(summary.losses.tolist())
        history["gram"].append(summary.gram.tolist())
        history["applied"].append(engine.was_step_applied())
        history["count"].append(weights.count)
    if ranks.rank == 0:
        form = (
            "buffer"
            if hasattr(engine.optimizer, "_use_compact_grad_partition_buffer")
            and (engine.optimizer._use_compact_grad_partition_buffer(0))
            else "list"
        )
        result = {**history, "mean": list(weights.mean().values()), "form": form}
        result["groups"] = len(engine.optimizer.partition_size)
        (folder / f"{scenario['name']}.json").write_text(json.dumps(result))
        torch.save(engine.module.state_dict(), folder / f"{scenario['name']}.final.pt")
    engine.destroy()


def main() -> None:
    quieten_libraries()
    ranks = read_ranks()
    start_process_group(ranks)
    folder = Path(sys.argv[2])
    for scenario in json.loads(Path(sys.argv[1]).read_text()):
        run(scenario, ranks, folder)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
