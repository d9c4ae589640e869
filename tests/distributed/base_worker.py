"""Run by two ranks: what a ZeRO-3 engine holds and does, next to what plain transformers does.

torchrun --nproc_per_node 2 tests/distributed/base_worker.py FOLDER
"""

import sys
from pathlib import Path

import deepspeed
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from doge_ds.config import BaseConfig, load_config
from doge_ds.evaluation.held_out_sample import HeldOutSample
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import start_engine
from doge_ds.training.launch import Ranks, quieten_libraries, read_ranks, seed_everything, start_process_group
from doge_ds.training.model import build_model, model_config, sequence_losses

ROOT = Path(__file__).resolve().parents[2]


def mean_and_deviation(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Of every parameter, gathered from all ranks."""
    found = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = (float(parameter.mean()), float(parameter.std()))
    return found


def a_few_steps(config: BaseConfig, ranks: Ranks, is_evaluated: bool = False, **training: object) -> dict[str, object]:
    """Losses of a fresh tied model whose every tensor is gathered for use and given back after it.

    And what shows that an option was not ignored: how often a layer computed in all steps, and what is offloaded.
    """
    settings = config.training.model_copy(update={"steps": 4, "warmup_steps": 0, "learning_rate": 0.01, **training})
    ds_config = complete_deepspeed_config(config.deepspeed, settings, 3, 2, 1, ranks)
    ds_config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    model = build_model(model_config(config.model, 64, 0, 16), ds_config, settings, None)
    computed = []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: computed.append(1))
    engine = start_engine(model, ds_config, settings)
    losses, held_out = [], []
    texts = {"a": np.arange(100, dtype=np.uint16) % 64, "b": np.arange(30, dtype=np.uint16) % 3}
    sample = HeldOutSample(texts, 0, 16, 3, 2, (ranks.rank, ranks.world_size))
    for step in range(settings.steps):
        seed_everything(step, ranks.rank)  # of dropout, and of the tokens
        tokens = torch.randint(64, (2, 16))
        loss = sequence_losses(engine, tokens).mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
        if is_evaluated:
            held_out.append(sample.measure(engine, engine.device))
    offloaded = [engine.optimizer.offload_optimizer, engine.optimizer.offload_param]
    parameters = mean_and_deviation(engine.module)
    engine.destroy()
    found = {"losses": losses, "parameters": parameters, "held_out": held_out}
    return found | {"times_computed": len(computed), "offloaded": offloaded}


def main() -> None:
    quieten_libraries()
    ranks = read_ranks()
    start_process_group(ranks)
    folder = Path(sys.argv[1])
    config = load_config(BaseConfig, folder / "base.json")
    # Wider than the run's model: the deviation of a small tensor says little.
    wide = model_config({**config.model, "n_embd": 128}, 64, 0, 16)
    ds_config = complete_deepspeed_config(config.deepspeed, config.training, 3, 2, 2, ranks)
    results: dict = {"zero3": mean_and_deviation(build_model(wide, ds_config, config.training, None))}
    torch.manual_seed(2)
    results["plain"] = mean_and_deviation(AutoModelForCausalLM.from_config(wide))

    model = build_model(model_config(config.model, 64, 0, 16), ds_config, config.training, None)
    engine = start_engine(model, ds_config, config.training)
    state = Checkpoints(folder / "base_undisturbed" / "checkpoints", config.training).load(engine)
    assert state is not None
    assert state["step"] == 40
    tokens = torch.arange(30).view(2, 15) % 64
    engine.eval()
    with torch.no_grad():
        results["engine"] = engine(input_ids=tokens).logits.float()
        saved = AutoModelForCausalLM.from_pretrained(folder / "base_undisturbed" / "hf").eval()
        results["hugging_face"] = saved(input_ids=tokens).logits.float()
    offload = load_config(BaseConfig, folder / "base.json", [f"deepspeed={ROOT / 'ds_configs/zero3_offload_cpu.json'}"])
    results["plain_steps"] = a_few_steps(config, ranks)
    results["checkpointed_steps"] = a_few_steps(config, ranks, gradient_checkpointing=True)
    results["evaluated_steps"] = a_few_steps(config, ranks, is_evaluated=True, gradient_checkpointing=True)
    results["offloaded_steps"] = a_few_steps(offload, ranks)
    pretrained = str(folder / "base_undisturbed" / "hf")
    started = build_model(model_config({"pretrained": pretrained}, 64, 0, 16), ds_config, config.training, pretrained)
    results["started_from"] = mean_and_deviation(started)
    results["is_partitioned"] = [parameter.numel() == 0 for parameter in started.parameters()]
    if ranks.rank == 0:
        torch.save(results, folder / "base_worker.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
