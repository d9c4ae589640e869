"""Every configuration that ships: it can be read, its model has the size that its name says, and its numbers fit."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import cut_into_micro_batches
from doge_ds.training.launch import Ranks
from doge_ds.training.model import model_config

ROOT = Path(__file__).resolve().parents[1]
GPT2_VOCABULARY = 50257
# Parameters in millions with GPT-2's vocabulary and as many positions as the sequence has tokens.
SIZES = {
    "proxy_60m": 60.3,
    "proxy_82m": 81.5,
    "proxy_82m_out_of_domain": 81.5,
    "proxy_82m_catalan": 81.5,
    "proxy_124m": 124.0,
    "base_124m": 124.0,
    "base_210m": 209.1,
    "base_684m": 683.6,
    "base_llama_1b": 1076.1,
}
RUNS = sorted((ROOT / "ds_configs/runs").glob("*.json"))
# (layers, width, heads) as the paper gives them.
SHAPES = {
    "proxy_60m": (3, 768, 12),
    "proxy_82m": (6, 768, 12),
    "proxy_124m": (12, 768, 12),
    "base_124m": (12, 768, 12),
    "base_210m": (24, 768, 16),
    "base_684m": (36, 1200, 24),
}


def load(path: Path, *settings: str) -> ProxyConfig | BaseConfig:
    return load_config(ProxyConfig if "proxy" in path.stem else BaseConfig, path, settings)


def test_all_are_here() -> None:
    assert {path.stem for path in RUNS} == {*SIZES, "demo_proxy", "demo_base"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_model_has_the_size_that_its_name_says(path: Path) -> None:
    config = load(path)
    shape = model_config(config.model, GPT2_VOCABULARY, 0, config.data.sequence_length)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if path.stem in SIZES:
        assert parameters / 1e6 == pytest.approx(SIZES[path.stem], rel=0.001)
        named = path.stem.split("_")[1 if "llama" not in path.stem else 2]
        assert parameters == pytest.approx(float(named[:-1]) * {"m": 1e6, "b": 1e9}[named[-1]], rel=0.08)
    if path.stem in SHAPES:
        assert (shape.n_layer, shape.n_embd, shape.n_head) == SHAPES[path.stem]
    assert shape.hidden_size % shape.num_attention_heads == 0


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_its_numbers_fit(path: Path) -> None:
    """On 2 ranks for the demo, on 8 and 16 for the others; DeepSpeed's part of the right stage and precision."""
    is_demo = path.stem.startswith("demo")
    config = load(path, "deepspeed.optimizer.params.torch_adam=true")  # as there is no GPU for the fused one here
    training = config.training
    assert training.warmup_steps <= training.steps / 5
    assert 0 < training.min_learning_rate < training.learning_rate
    for world_size in (1, 2) if is_demo else (8, 16):
        key = "sequences_per_domain" if isinstance(config, ProxyConfig) else "global_batch_size"
        size, count = cut_into_micro_batches(key, getattr(training, key), training.micro_batch_size, world_size)
        assert size * count * world_size == getattr(training, key)
        stage, accumulation = (2, 1) if isinstance(config, ProxyConfig) else (3, count)
        ranks = Ranks(rank=0, world_size=world_size, local_rank=0)
        found = complete_deepspeed_config(config.deepspeed, training, stage, size, accumulation, ranks)
        assert found.get("bf16", {}).get("enabled", False) is not is_demo
        assert ("data_types" in found) is not is_demo  # bf16 gradients are summed in fp32


def test_the_papers_proxies_are_the_papers() -> None:
    for name in SHAPES:
        if not name.startswith("proxy"):
            continue
        config = load_config(ProxyConfig, ROOT / f"ds_configs/runs/{name}.json")
        training, doge = config.training, config.doge
        assert (training.steps, training.sequences_per_domain, training.warmup_steps) == (10_000, 16, 500)
        assert (training.learning_rate, training.min_learning_rate, training.weight_decay) == (5e-4, 1e-4, 0.01)
        assert (config.data.sequence_length, training.gradient_clipping) == (512, 5.0)
        assert (doge.target, doge.preset, doge.mu) == ("mix", "official", 0.01)
        # The authors clip each domain's gradient to the same norm; scores are clipped to [0, 5].
        assert (doge.clip_domain_gradients, doge.clip, doge.normalize) == (5.0, (0.0, 5.0), "mean_gradient_norm")
    for name, mu, clip in (("out_of_domain", 0.05, 1.0), ("catalan", 0.001, 5.0)):
        config = load_config(ProxyConfig, ROOT / f"ds_configs/runs/proxy_82m_{name}.json")
        assert (config.doge.mu, config.doge.clip_domain_gradients, config.training.gradient_clipping) == (
            mu,
            clip,
            clip,
        )
        assert isinstance(config.doge.target, list)
    for name in ("base_124m", "base_210m", "base_684m"):
        base = load_config(BaseConfig, ROOT / f"ds_configs/runs/{name}.json")
        assert (base.training.global_batch_size, base.data.sequence_length) == (128, 512)
        assert base.training.gradient_clipping == 1.0


def test_the_cpu_twins_differ_in_what_a_gpu_is_needed_for() -> None:
    """Precision, the fused optimizer, overlap and pinned memory; whatever else differed would be tested nowhere."""
    for name in ("zero2", "zero3", "zero3_offload"):
        gpu, cpu = (json.loads((ROOT / f"ds_configs/{name}{end}.json").read_text()) for end in ("", "_cpu"))
        assert gpu.pop("bf16") == {"enabled": True}
        assert gpu.pop("data_types") == {"grad_accum_dtype": "fp32"}
        assert (gpu["zero_optimization"].pop("overlap_comm"), cpu["zero_optimization"].pop("overlap_comm")) == (
            True,
            False,
        )
        assert cpu["optimizer"]["params"].pop("torch_adam") is True
        if name == "zero3_offload":
            assert cpu.pop("zero_force_ds_cpu_optimizer") is False
            for key in ("offload_optimizer", "offload_param"):
                assert gpu["zero_optimization"][key].pop("pin_memory") is True
        assert gpu == cpu
