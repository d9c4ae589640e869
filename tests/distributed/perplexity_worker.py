"""Run by every rank: held-out losses of texts and options, and of a model that fails on one rank only.

    torchrun --nproc_per_node W tests/distributed/perplexity_worker.py CASES.json FOLDER

As a plain process with RANK unset: the same on one rank.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.errors import ModelError
from doge_ds.evaluation.perplexity import HeldOutText, WindowOptions, measure_domain

END = 4


def build_model() -> Any:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16, "initializer_range": 0.4}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", **shape, vocab_size=23, bos_token_id=END, eos_token_id=END)
    )


def measure(case: dict[str, Any], ranks: tuple[int, int]) -> dict[str, Any]:
    """Nats and tokens of each window, or the message of a ModelError."""
    model = build_model()
    tokens = np.array(case["tokens"], dtype="<u2")
    if case.get("damaged_token") is not None:
        model.transformer.wte.weight.data[case["damaged_token"]] = torch.nan
        model.lm_head.weight = torch.nn.Parameter(torch.ones_like(model.lm_head.weight))  # so that it is not tied
    told: list[int] = []
    try:
        losses = measure_domain(
            model,
            HeldOutText(tokens, 100),
            END,
            WindowOptions(**case["options"]),
            case["batch_size"],
            ranks=ranks,
            progress=told.append,
            name="d",
        )
    except ModelError as error:
        return {"error": str(error)}
    return {"nats": losses.nats.tolist(), "tokens": losses.tokens.tolist(), "told": sum(told)}


def main() -> None:
    ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    found = [measure(case, ranks) for case in cases]
    (folder / f"{ranks[0]}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
