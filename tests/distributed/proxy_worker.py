"""Run by every rank: trains proxies on given tokens and writes down everything that happened.

    torchrun --nproc_per_node W tests/distributed/proxy_worker.py SCENARIOS.json FOLDER

One start serves many scenarios: the libraries are loaded once, a scenario takes a second or two on one rank.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from doge_ds.config_sections import DogeConfig, DoremiConfig, ProxyTrainingConfig
from doge_ds.evaluation.held_out_sample import HeldOutSample
from doge_ds.reweight.doge import DogeWeights
from doge_ds.reweight.domain_weights import DomainWeights
from doge_ds.reweight.doremi import DoremiWeights
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.domain_gradients import DomainGradients
from doge_ds.training.engine import cut_into_micro_batches, start_engine
from doge_ds.training.launch import Ranks, quieten_libraries, read_ranks, start_process_group
from doge_ds.training.model import build_model, model_config
from doge_ds.training.selection import TensorSelection
from tests.distributed.scenarios import STEPS, batches_of, freeze, rows_of


def held_out(scenario: dict, batch_size: int, ranks: Ranks) -> HeldOutSample:
    """A few windows of every row; none in a scenario that does not measure them."""
    texts = {
        row: part.flatten().numpy() for row, part in zip(scenario["rows"], batches_of(scenario, 9999), strict=True)
    }
    chosen = texts if "evaluated_every" in scenario else {}
    return HeldOutSample(chosen, 0, scenario["length"], 3, batch_size, (ranks.rank, ranks.world_size))


def save_with_logits(engine: Any, scenario: dict, training: ProxyTrainingConfig, folder: Path) -> None:
    """Of a scenario that measures held-out text: a checkpoint, and what its engine says of the first tokens."""
    if "evaluated_every" not in scenario:
        return
    tokens = batches_of(scenario, 0)[0]
    Checkpoints(folder / "checkpoints", training).save(engine, training.steps, {})
    engine.eval()
    with torch.no_grad():
        torch.save(engine(input_ids=tokens).logits, folder / f"logits{engine.global_rank}.pt")


def reference_model(
    scenario: dict, shape: Any, config: dict, training: ProxyTrainingConfig, folder: Path
) -> torch.nn.Module | None:
    """Of a scenario of DoReMi: drawn with another seed and far wider, so that some of its losses are above the proxy's
    and some below, to the end."""
    if "method" not in scenario:
        return None
    model = build_model(shape, config, training.model_copy(update={"seed": training.seed + 1}), pretrained=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    torch.save(model.state_dict(), folder / f"{scenario['name']}.reference{os.getpid()}.pt")
    (folder / f"{scenario['name']}.reference{os.getpid()}.pt").replace(folder / f"{scenario['name']}.reference.pt")
    return model.eval()


def first_weights(scenario: dict, options: DogeConfig | DoremiConfig) -> DomainWeights:
    rows, train_rows = scenario["rows"], scenario["train_rows"]
    if isinstance(options, DoremiConfig):
        return DoremiWeights(rows[:train_rows], options)
    return DogeWeights(rows[:train_rows], rows, options)


def run(scenario: dict, ranks: Ranks, folder: Path) -> None:
    rows, train_rows = scenario["rows"], scenario["train_rows"]
    training = ProxyTrainingConfig.model_validate(scenario["training"])
    options = (DoremiConfig if "method" in scenario else DogeConfig).model_validate(scenario["doge"])
    chosen_tensors = options.selection if isinstance(options, DogeConfig) else None
    size, count = cut_into_micro_batches(
        "sequences_per_domain", training.sequences_per_domain, training.micro_batch_size, ranks.world_size
    )
    if "fp16" in scenario["deepspeed"]:
        # DeepSpeed asks whether the processor has instructions for fp16. torch computes in it without, slowly.
        get_accelerator().is_fp16_supported = lambda: True
    config = complete_deepspeed_config(scenario["deepspeed"], training, 2, size, 1, ranks)
    shape = model_config(scenario["model"], scenario["vocabulary"], 0, scenario["length"])
    model = build_model(shape, config, training, pretrained=None)
    freeze(model, scenario.get("frozen", ""))
    if ranks.rank == 0:
        torch.save(model.state_dict(), folder / f"{scenario['name']}.initial.pt")
    reference = reference_model(scenario, shape, config, training, folder)
    engine = start_engine(model, config, training)
    gradients = DomainGradients(engine, rows[:train_rows], len(rows) - train_rows, training.seed, options, reference)
    selection = TensorSelection(engine, gradients, chosen_tensors)
    weights = first_weights(scenario, options)
    history: dict[str, list] = {"weights": [], "losses": [], "gram": [], "scores": [], "applied": [], "count": []}
    history["loss_scales"], history["held_out"] = [], []
    sample = held_out(scenario, size, ranks)
    for step in range(training.steps):
        if step in (5, 25):  # as a resumed run takes them over, while a selection is being measured and after it
            states = json.loads(json.dumps([weights.state_dict(), selection.state_dict()]))
            weights = first_weights(scenario, options)
            weights.load_state_dict(states[0])
            selection = TensorSelection(engine, gradients, chosen_tensors)
            selection.load_state_dict(states[1])
        history["held_out"] += [sample.measure(engine)] if step % scenario.get("evaluated_every", STEPS) == 0 else []
        chosen, is_update = rows_of(scenario, step)
        tokens_of_rows = batches_of(scenario, step)
        mine = {row: tokens_of_rows[row][ranks.rank * size * count :][: size * count].split(size) for row in chosen}
        rate, proposal = engine.get_lr()[0], None
        if is_update:
            for row in chosen:
                gradients.collect(step, rows[row], mine[row])
            if step == scenario.get("poisoned_step"):
                gradients._rows._train[-1, 0] = float("nan")
            summary = gradients.reduce(stop=False)
            proposal = weights.propose(summary, rate)
            gradients.apply(proposal.coefficients)
            history["gram"].append(summary.gram.tolist())
            history["scores"].append(proposal.scores.tolist())
        else:
            batches = [(rows[row], mine[row]) for row in chosen]
            summary = gradients.train(step, batches, weights.coefficients([name for name, _ in batches]), stop=False)
        history["loss_scales"].append(float(engine.optimizer.loss_scale))
        was_applied = selection.step(step)
        if proposal and was_applied:
            weights.accept(proposal)
        history["weights"].append(list(weights.current().values()))
        history["losses"].append(summary.losses.tolist())
        history["applied"].append(was_applied)
        history["count"].append(weights.count)
    if ranks.rank == 0:
        form = (
            "buffer"
            if hasattr(engine.optimizer, "_use_compact_grad_partition_buffer")
            and (engine.optimizer._use_compact_grad_partition_buffer(0))
            else "list"
        )
        result = {**history, "mean": list(weights.mean().values()), "form": form}
        result["selection"] = selection.facts()
        result["groups"] = len(engine.optimizer.partition_size)
        (folder / f"{scenario['name']}.json").write_text(json.dumps(result))
        torch.save(engine.module.state_dict(), folder / f"{scenario['name']}.final.pt")
    save_with_logits(engine, scenario, training, folder)
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
