"""Proxy runs that the ranks and the reference both make: models, options, and the tokens of every step."""

import torch

LENGTH, VOCABULARY, STEPS = 12, 37, 20

# Odd sizes: 20-wide layers and 37 tokens make shards that do not divide by 2 or 4, so there is padding inside.
MODEL = {"model_type": "gpt2", "n_layer": 2, "n_embd": 20, "n_head": 2}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

# A large eps: GPT-2's key biases have a true gradient of 0, and Adam would blow their rounding noise up to full steps.
DEEPSPEED = {
    "zero_optimization": {"stage": 2, "overlap_comm": False},
    "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "betas": [0.9, 0.95], "eps": 1e-4}},
}


def scenario(name: str, target: object = "all", **changes: object) -> dict:
    """One run; `changes` replace parts of training, doge, deepspeed or the rest."""
    rows = ["a", "b", "c"]
    if target == "mix":
        rows.append("<mix>")
    elif isinstance(target, list):
        rows += [name for name in target if name not in rows]
    training = {
        "steps": STEPS,
        "sequences_per_domain": 8,
        "learning_rate": 0.01,
        "min_learning_rate": 0.001,
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "gradient_clipping": 0.7,
        "seed": 3,
    }
    return {
        "name": name,
        "rows": rows,
        "train_rows": 3,
        "length": LENGTH,
        "vocabulary": VOCABULARY,
        "model": changes.pop("model", MODEL),
        "training": {**training, **changes.pop("training", {})},
        "doge": {"target": target, "mu": 0.02, **changes.pop("doge", {})},
        "deepspeed": {**DEEPSPEED, **changes.pop("deepspeed", {})},
        **changes,
    }


SMALL_BUCKETS = {
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 501,
        "allgather_bucket_size": 334,
    }
}
BF16_BUFFER = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
BF16_LIST = {"bf16": {"enabled": True}}

EXACT = [
    scenario("all_paper", "all", doge={"preset": "paper"}),
    scenario("others_official", "others", doge={"preset": "official", "clip_domain_gradients": 0.6}),
    scenario("mix_official", "mix", doge={"preset": "official"}, training={"micro_batch_size": 2}),
    scenario("outside_paper", ["x"], doge={"preset": "paper", "mu": 0.05}),
    scenario("two_targets_euclidean", ["x", "b"], doge={"preset": "official", "divergence": "euclidean"}),
    scenario("small_buckets", "all", doge={"preset": "official"}, deepspeed=SMALL_BUCKETS),
    scenario("llama_untied_frozen", "all", model=LLAMA, frozen="embed_tokens", doge={"preset": "paper", "mu": 0.2}),
]
ROUNDED = [
    scenario(
        "bf16_buffer", "all", doge={"preset": "official"}, deepspeed=BF16_BUFFER, training={"micro_batch_size": 1}
    ),
    scenario("bf16_list", "all", doge={"preset": "official"}, deepspeed=BF16_LIST),
]
SKIPPED = [
    scenario("poisoned", ["x"], poisoned_step=7, doge={"preset": "paper"}),
    scenario("poisoned_bf16", deepspeed=BF16_BUFFER, poisoned_step=7),
]


def batches_of(scenario: dict, step: int) -> list[torch.Tensor]:
    """One [sequences, length] token tensor per row; every row has its own word frequencies and a habit of repeating."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = []
    for row in range(len(scenario["rows"])):
        ranks = (torch.arange(VOCABULARY) * (row + 2) + 5 * row) % VOCABULARY
        frequencies = 1.0 / (1.0 + ranks.float())
        shape = (scenario["training"]["sequences_per_domain"], LENGTH)
        tokens = torch.multinomial(frequencies, shape[0] * shape[1], replacement=True, generator=generator).view(shape)
        repeat = torch.rand(shape, generator=generator) < 0.2 * row
        for place in range(1, LENGTH):
            tokens[:, place] = torch.where(repeat[:, place], tokens[:, place - 1], tokens[:, place])
        found.append(tokens)
    return found


def freeze(model: torch.nn.Module, part: str) -> None:
    """Parameters whose names contain `part` do not train."""
    for name, parameter in model.named_parameters():
        if part and part in name:
            parameter.requires_grad_(False)
