"""Proxy runs that the ranks and the reference both make: models, options, and the tokens of every step."""

import torch

LENGTH, VOCABULARY, STEPS = 12, 37, 50

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
# No growth of the loss scale: in the step that doubles it, DeepSpeed divides the gradient by the new scale.
FP16 = {
    "fp16": {"enabled": True, "initial_scale_power": 22, "loss_scale_window": 1000, "hysteresis": 1},
    "data_types": {"grad_accum_dtype": "fp32"},
}


def alone(name: str, target: object = "all", **doge: object) -> dict:
    """The paper's scores with one option changed."""
    return scenario(name, target, doge={"preset": "paper", **doge})


def doremi(name: str, micro: int | None, **options: object) -> dict:
    """Group DRO against a reference model, which is drawn with another seed."""
    found = scenario(name, [], training={"micro_batch_size": micro})
    return {**found, "method": "doremi", "doge": options}


# Against the reference on 1, 2 and 4 ranks: every kind of target, both presets, every option by itself, every form in
# which DeepSpeed keeps fp32 gradients.
EXACT = [
    alone("all_paper"),
    scenario("others_official", "others", doge={"preset": "official", "clip_domain_gradients": 0.6}),
    scenario("mix_official", "mix", doge={"preset": "official"}, training={"micro_batch_size": 2}),
    alone("one_outside", ["x"], mu=0.05),
    alone("two_outside", ["x", "y"], mu=0.05),
    scenario("one_inside", ["b"], doge={"preset": "official", "mu": 0.01}),
    scenario("outside_and_inside_euclidean", ["x", "b"], doge={"preset": "official", "divergence": "euclidean"}),
    alone("clip_domain_gradients", clip_domain_gradients=0.6),
    alone("mean_gradient_norm", normalize="mean_gradient_norm"),
    alone("cosine", "others", normalize="cosine"),
    alone("clip", "others", clip=[0.05, 0.3]),
    alone("smoothing", smoothing=0.03),
    alone("step_size", "others", step_size=0.004),
    alone("euclidean", divergence="euclidean", mu=0.1),
    scenario("small_buckets", "all", doge={"preset": "official"}, deepspeed=SMALL_BUCKETS),
    scenario("llama_untied_frozen", "all", model=LLAMA, frozen="embed_tokens", doge={"preset": "paper", "mu": 0.2}),
    alone("rows_on_the_host", ["x"], mu=0.05, gradient_store="cpu"),
]
# What these options change is computed from the Gram matrix, alike on every rank: they run on 1 and 2 ranks. The others
# run on 4 too, where a scenario takes 4 to 8 seconds on 2 cores.
OF_THE_SCORES = (
    "one_outside",
    "two_outside",
    "clip_domain_gradients",
    "mean_gradient_norm",
    "cosine",
    "clip",
    "smoothing",
    "step_size",
    "euclidean",
)
# DoReMi, against tests/reference_doremi.py: `doge` holds its section.
DOREMI = [
    doremi("doremi", micro=None, step_size=0.3, smoothing=1e-3),
    doremi("doremi_micro_batches", micro=2, step_size=1.0, smoothing=0.05, gradient_store="cpu"),
]
# Ours, not the paper's: against tests/reference_extensions.py.
EXTENDED = [
    alone("subsets_all", "all", domains_per_step=2, absent_score_decay=0.5),
    alone("subsets_outside_held", ["x"], domains_per_step=1, mu=0.05),
    scenario(
        "subsets_official_mean", "mix", doge={"preset": "official", "domains_per_step": 2, "absent_score_decay": 0}
    ),
    scenario("every_third", ["x"], doge={"preset": "official", "update_every": 3}, training={"micro_batch_size": 2}),
    alone("selection", "all", selection={"steps": 10, "tensors": 5}, mu=0.005),
    scenario(
        "selection_largest_outside",
        ["x"],
        doge={
            "preset": "official",
            "clip_domain_gradients": 0.6,
            "mu": 0.005,
            "selection": {"steps": 8, "tensors": -6},
            "update_every": 2,
            "domains_per_step": 2,
        },
    ),
]
ROUNDED = [
    scenario(
        "bf16_buffer", "all", doge={"preset": "official"}, deepspeed=BF16_BUFFER, training={"micro_batch_size": 1}
    ),
    scenario("bf16_list", "all", doge={"preset": "official"}, deepspeed=BF16_LIST),
    scenario("bf16_rows", "all", doge={"preset": "official", "gradient_dtype": "bfloat16"}),
]
SKIPPED = [
    scenario("poisoned", ["x"], poisoned_step=7, training={"steps": 20}, doge={"preset": "paper"}),
    scenario("poisoned_bf16", deepspeed=BF16_BUFFER, poisoned_step=7, training={"steps": 20}),
]
# Its first loss scales are too large, so that the first steps are skipped, until one fits.
HALF = [scenario("fp16", "all", doge={"preset": "official"}, deepspeed=FP16)]


# "all_paper" once more, with held-out text measured now and then, and a checkpoint at the end.
EVALUATED = [scenario("evaluated", "all", doge={"preset": "paper"}, evaluated_every=20)]


def runs_on(name: str, ranks: int) -> bool:
    """Whether the scenario of this name is run on so many ranks."""
    return ranks < 4 or name not in OF_THE_SCORES


def rows_of(scenario: dict, step: int) -> tuple[list[int], bool]:
    """Numbers of the rows that a step has, and whether it updates the weights."""
    doge, train = scenario["doge"], scenario["train_rows"]
    first = (doge.get("selection") or {"steps": 0})["steps"]
    is_update = step >= first and (step - first + 1) % doge.get("update_every", 1) == 0
    # Written down from data/subsets.py's rule: every block of ceil(3 / n) steps has every domain.
    blocks = {1: [[1], [0], [2]], 2: [[0, 2], [0, 1]], 3: [[0, 1, 2]]}[doge.get("domains_per_step", 3)]
    chosen = blocks[step % len(blocks)]
    return [*chosen, *(range(train, len(scenario["rows"])) if is_update else [])], is_update


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
