"""Each number has one owner, and what DeepSpeed cannot use is told before it gets it."""

import json
from pathlib import Path

import pytest

from doge_ds.config_sections import ProxyTrainingConfig
from doge_ds.errors import ConfigError
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import cut_into_micro_batches
from doge_ds.training.launch import Ranks

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ProxyTrainingConfig(
    steps=10, sequences_per_domain=24, learning_rate=0.01, weight_decay=0.1, gradient_clipping=0.5
)
RANKS = Ranks(rank=0, world_size=3, local_rank=0)


def complete(config: dict, stage: int = 2) -> dict:
    return complete_deepspeed_config(config, TRAINING, stage, 4, 2, RANKS)


def test_the_run_configurations_numbers_are_written_and_the_rest_is_kept() -> None:
    given = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 7},
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "betas": [0.8, 0.9], "lr": "auto"}},
        "bf16": {"enabled": True},
        "gradient_clipping": "auto",
        "tensorboard": {"enabled": True},  # our own part opens it
    }
    completed = complete(given)
    assert completed == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 7},
        "optimizer": {
            "type": "AdamW",
            "params": {"torch_adam": True, "betas": [0.8, 0.9], "lr": 0.01, "weight_decay": 0.1},
        },
        "bf16": {"enabled": True},
        "gradient_clipping": 0.5,
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
    }
    assert given["optimizer"]["params"] == {"torch_adam": True, "betas": [0.8, 0.9], "lr": "auto"}
    assert given["tensorboard"] == {"enabled": True}


ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "deepspeed.zero_optimization.stage: is 0; this program needs 2"),
        ({"zero_optimization": {"stage": 3}}, "is 3; this program needs 2: see ds_configs/zero2.json"),
        ({**ZERO2, "train_batch_size": 32}, "deepspeed.train_batch_size: says 32 where the run configuration gives 24"),
        ({**ZERO2, "gradient_clipping": 1.0}, "deepspeed.gradient_clipping: says 1.0"),
        ({**ZERO2, "gradient_accumulation_steps": 4}, "says 4 where the run configuration gives 2; delete it there"),
        ({**ZERO2, "scheduler": {"type": "WarmupLR"}}, "deepspeed.scheduler: belongs to the run configuration"),
        ({**ZERO2, "optimizer": {"type": "Lamb"}}, "deepspeed.optimizer.type: is 'Lamb'"),
        (
            {**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": 0.1}}},
            "deepspeed.optimizer.params.lr: says 0.1 where the run configuration gives 0.01",
        ),
        ({**ZERO2, "wandb": True}, "deepspeed: wandb: True is no object"),
        (
            {**ZERO2, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}},
            "deepspeed.optimizer: is DeepSpeed's own Adam, which is for GPUs, and DeepSpeed finds none here; "
            "use ds_configs/zero2_cpu.json",
        ),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": True}},
            "deepspeed.zero_optimization.cpu_offload: cannot be used by the proxy",
        ),
    ],
)
def test_a_contradiction_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(config)
    assert message in str(caught.value)


ADAMW = {"type": "AdamW", "params": {"torch_adam": True}}
ZERO3 = {"zero_optimization": {"stage": 3}, "optimizer": ADAMW}


def adamw(**parameters: object) -> dict:
    return {"optimizer": {"type": "AdamW", "params": {"torch_adam": True, **parameters}}}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"bf17": {}}, "deepspeed.bf17: unknown key; did you mean 'bf16'?"),
        ({"bf16": {}, "bfloat16": {"enabled": True}}, "deepspeed.bfloat16: unknown key; did you mean 'bf16'?"),
        ({"bf16": {"enabled": "perhaps"}}, 'deepspeed.bf16.enabled: "perhaps" cannot stand; it should be a valid bool'),
        ({"bf16": {"enabled": "auto"}}, 'deepspeed.bf16.enabled: "auto" cannot stand; it should be true or false'),
        ({"bf16": {"enable": True}}, "deepspeed.bf16.enable: unknown key; did you mean 'enabled'?"),
        (
            {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
            "deepspeed: DeepSpeed refuses it (bfloat16 and fp16 modes cannot be simultaneously enabled); see",
        ),
        ({"data_types": 5}, "deepspeed.data_types: 5 cannot stand ("),
        (
            {"data_types": {"grad_acum_dtype": "fp32"}},
            "data_types.grad_acum_dtype: unknown key; did you mean 'grad_acc",
        ),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, 'data_types.grad_accum_dtype: "fp8" cannot stand; it should be'),
        (
            {"zero_optimization": {"stage": 3, "stage3_max_live_parameter": 5}},
            "zero_optimization.stage3_max_live_parameter: unknown key; did you mean 'stage3_max_live_parameters'?",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}},
            "zero_optimization.offload_param.device: \"disk\" cannot stand; it should be 'none', 'cpu' or 'nvme'",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu"}}}, "offload_param.devise: unknown key;"),
        (
            {"zero_optimization": {"stage": 3, "compute_grad_norm": False}},
            "deepspeed.zero_optimization: compute_grad_norm=false is supported only with ZeRO Stage 1 or 2; see",
        ),
        ({"prescale_gradients": "false"}, 'prescale_gradients: "false" cannot stand; it should be true or false'),
        ({"gradient_predivide_factor": "2"}, 'gradient_predivide_factor: "2" cannot stand; it should be a number'),
        ({"communication_data_type": "fp8"}, "deepspeed.communication_data_type: DeepSpeed refuses it (Invalid "),
        (
            {"amp": {"enabled": True}},
            "deepspeed.amp: DeepSpeed refuses it (NVIDIA Apex AMP integration has been removed",
        ),
        (adamw(beta=0.9), "deepspeed.optimizer.params.beta: AdamW has no such setting; did you mean 'betas'?"),
        (
            adamw(torch_adam=False, fused=True),
            "params.fused: FusedAdam has no such setting; known are: adam_w_mode, ams",
        ),
        (adamw(betas="auto"), 'deepspeed.optimizer.params.betas: "auto" cannot stand'),
        (adamw(betas=[0.9]), "deepspeed.optimizer.params.betas: [0.9] cannot stand"),
        (adamw(eps=-1), "deepspeed.optimizer.params.eps: -1 cannot stand"),
    ],
)
def test_what_deepspeed_would_stumble_over_or_overlook_is_refused(section: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        complete({**ZERO3, **section}, stage=3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# From DeepSpeed's page on its configuration, with what it calls deprecated and what is read only in part.
DOCUMENTED = {
    "bf16": {"enabled": False, "bf16_master_weights_and_grads": False, "bf16_optimizer_states": False},
    "fp16": {"enabled": True, "auto_cast": False, "loss_scale": 0, "initial_scale_power": 16, "min_loss_scale": 1},
    "torch_autocast": {"enabled": False, "dtype": "bfloat16", "lower_precision_safe_modules": ["torch.nn.Linear"]},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "gradient_allreduce_op": "mean",
    "prescale_gradients": False,
    "gradient_predivide_factor": 1,
    "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True},
    "steps_per_print": 10,
    "wall_clock_breakdown": False,
    "dump_state": False,
    "autotuning": {"enabled": False, "fast": True, "arg_mappings": {"train_micro_batch_size_per_gpu": "--batch"}},
    "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1, "top_modules": 1, "output_file": None},
    "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None, "profile": False},
    "data_efficiency": {"enabled": False, "seed": 1234, "data_sampling": {"enabled": False, "num_workers": 0}},
    "comms_logger": {"enabled": False, "verbose": False, "prof_all": True, "debug": False},
    "checkpoint": {"tag_validation": "Warn", "load_universal": False, "parallel_write": {"pipeline_stage": False}},
    "compile": {"deepcompile": False, "passes": []},
    "tensor_parallel": {"autotp_size": 0},
    "hybrid_engine": {"enabled": False, "max_out_tokens": 512},
    "expert_parallel": {"enabled": False, "autoep_size": 1},
    "datastates_ckpt": {"host_cache_size": 16},
    "timers": {"throughput": {"enabled": True, "synchronized": False}},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": "auto",  # transformers' Trainer writes these; DeepSpeed takes its defaults
        "sub_group_size": 1e9,
        "stage3_prefetch_bucket_size": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme", "pin_memory": True, "ratio": 0.5},
    },
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": [0.8, 0.999], "eps": 1e-8, "torch_adam": True, "adam_w_mode": True},
    },
}


def test_what_deepspeed_documents_is_passed_on() -> None:
    completed = complete(DOCUMENTED, stage=3)
    assert completed["optimizer"]["params"] == {**DOCUMENTED["optimizer"]["params"], "lr": 0.01, "weight_decay": 0.1}
    for key in DOCUMENTED.keys() - {"optimizer"}:
        assert completed[key] == DOCUMENTED[key]


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_what_ships_is_accepted_or_refused_for_want_of_a_gpu_alone(path: Path) -> None:
    stage, config = 2 if "zero2" in path.stem else 3, json.loads(path.read_text())
    if not path.stem.endswith("_cpu"):
        with pytest.raises(
            ConfigError, match=f"^deepspeed.optimizer: is .*; use ds_configs/{path.stem}_cpu.json, or set"
        ):
            complete(config, stage)
        config["optimizer"]["params"]["torch_adam"] = True
    completed = complete(config, stage)
    for key in config.keys() - {"optimizer"}:
        assert completed[key] == config[key]


def test_micro_batches_default_to_all_that_a_rank_gets() -> None:
    assert cut_into_micro_batches("sequences_per_domain", 24, None, 3) == (8, 1)
    assert cut_into_micro_batches("sequences_per_domain", 24, 2, 3) == (2, 4)


@pytest.mark.parametrize(
    ("sequences", "micro", "ranks", "would_do"),
    [(10, None, 4, "8 or 12"), (3, None, 4, "4"), (24, 5, 3, "15 or 30"), (24, 16, 2, "32")],
)
def test_a_step_that_cannot_be_cut_is_refused_with_what_would_do(
    sequences: int, micro: int | None, ranks: int, would_do: str
) -> None:
    with pytest.raises(ConfigError, match=f"{sequences} cannot be divided by {ranks} ranks.*; {would_do} would do"):
        cut_into_micro_batches("sequences_per_domain", sequences, micro, ranks)
