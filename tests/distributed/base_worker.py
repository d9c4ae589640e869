"""Run by two ranks under torchrun: what a ZeRO-3 engine holds, next to what plain transformers holds.

torchrun --nproc_per_node 2 tests/distributed/base_worker.py FOLDER
"""

import sys
from pathlib import Path

import deepspeed
import torch
from transformers import AutoModelForCausalLM

from doge_ds.config import BaseConfig, load_config
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import Checkpoints, start_engine
from doge_ds.training.launch import quieten_libraries, read_ranks, start_process_group
from doge_ds.training.model import build_model, model_config


def mean_and_deviation(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Of every parameter, gathered from all ranks."""
    found = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = (float(parameter.mean()), float(parameter.std()))
    return found


def main() -> None:
    quieten_libraries()
    ranks = read_ranks()
    start_process_group(ranks)
    folder = Path(sys.argv[1])
    config = load_config(BaseConfig, folder / "base.json")
    # Wider than the run's model: the deviation of a small tensor says little.
    wide = model_config({**config.model, "n_embd": 128}, 64, 0, 16)
    ds_config = complete_deepspeed_config(config.deepspeed, config.training, 3, 2, 2, ranks)
    results: dict = {"zero3": mean_and_deviation(build_model(wide, ds_config, seed=1))}
    torch.manual_seed(2)
    results["plain"] = mean_and_deviation(AutoModelForCausalLM.from_config(wide))

    model = build_model(model_config(config.model, 64, 0, 16), ds_config, seed=1)
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
    if ranks.rank == 0:
        torch.save(results, folder / "base_worker.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
