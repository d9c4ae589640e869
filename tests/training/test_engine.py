"""torch.compile under the hook, and where it cannot be."""

import json
from pathlib import Path

import deepspeed
import pytest
import torch
from torch._inductor.utils import fresh_cache

from doge_ds.config_sections import BaseTrainingConfig, DogeConfig, ProxyTrainingConfig
from doge_ds.errors import ConfigError
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.domain_gradients import DomainGradients
from doge_ds.training.engine import start_engine
from doge_ds.training.launch import Ranks
from doge_ds.training.model import build_model, model_config, sequence_losses

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def _compiled_anew() -> None:
    """Nothing that another test compiled, or gave up to compile, is taken."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("process_group", "_compiled_anew")
def test_a_compiled_model_has_the_same_domain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend aot_eager, which traces forward and backward as inductor does but compiles no C++ (a minute)."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("deepspeed.DeepSpeedEngine.compile.__defaults__", ("aot_eager", {}, None, False))
    ds_config = json.loads((ROOT / "ds_configs/zero2_cpu.json").read_text())
    shape = model_config({"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2}, 50, 3, 12)
    generator = torch.Generator().manual_seed(2)
    tokens = {name: torch.randint(50, (4, 12), generator=generator) for name in "ab"}
    grams = {}
    for is_compiled in (False, True):
        training = ProxyTrainingConfig(
            steps=2, sequences_per_domain=4, micro_batch_size=2, learning_rate=0.01, compile=is_compiled
        )
        config = complete_deepspeed_config(ds_config, training, 2, 2, 1, Ranks(rank=0, world_size=1, local_rank=0))
        engine = start_engine(build_model(shape, config, training, None), config, training)
        gradients = DomainGradients(engine, list(tokens), 0, 0, DogeConfig(target="all"))
        grams[is_compiled] = []
        for step in range(2):
            for name, sequences in tokens.items():
                gradients.collect(step, name, sequences.split(2))
            grams[is_compiled].append(gradients.reduce(stop=False).gram)
            gradients.apply(torch.tensor([0.7, 0.3], dtype=torch.float64))
            engine.step()
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) is is_compiled
        engine.destroy()
    for plain, compiled in zip(grams[False], grams[True], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    assert not torch.equal(grams[True][0], grams[True][1])


@pytest.mark.usefixtures("process_group", "_compiled_anew")
@torch._dynamo.config.patch(recompile_limit=2)  # 8 only take longer
def test_a_compiled_model_has_the_same_losses_under_zero3(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's hooks, which fetch each layer's tensors, cut the graph at every layer."""
    monkeypatch.setattr("deepspeed.DeepSpeedEngine.compile.__defaults__", ("aot_eager", {}, None, False))
    shape = model_config({"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}, 50, 3, 12)
    losses = {}
    for is_compiled in (False, True):
        engine = small_engine("zero3_cpu", shape, monkeypatch, compile=is_compiled)
        generator = torch.Generator().manual_seed(2)
        losses[is_compiled] = []
        for _ in range(2):
            loss = sequence_losses(engine, torch.randint(50, (4, 12), generator=generator)).mean()
            engine.backward(loss)
            engine.step()
            losses[is_compiled].append(loss.item())
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) is is_compiled
        engine.destroy()
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)
    assert losses[True][0] != losses[True][1]


@pytest.mark.usefixtures("process_group", "_compiled_anew")
@torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
def test_a_machine_without_a_cpp_compiler_is_told_so_at_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = model_config({"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}, 50, 3, 12)
    engine = small_engine("zero2_cpu", shape, monkeypatch, compile=True)
    with fresh_cache(), pytest.raises(ConfigError) as caught:  # what was compiled before needs no compiler
        sequence_losses(engine, torch.ones(4, 12, dtype=torch.long))
    assert "training.compile: cannot be used here (" in str(caught.value)
    assert "No working C++ compiler found" in str(caught.value)
    assert "\n" not in str(caught.value)
    engine.destroy()


def small_engine(
    ds_config: str, shape: object, monkeypatch: pytest.MonkeyPatch, **training: object
) -> deepspeed.DeepSpeedEngine:
    """Of this process alone, with micro-batches of 4 sequences."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    settings = BaseTrainingConfig.model_validate(
        {"steps": 3, "global_batch_size": 4, "learning_rate": 0.01, **training}
    )
    values = json.loads((ROOT / f"ds_configs/{ds_config}.json").read_text())
    stage = values["zero_optimization"]["stage"]
    config = complete_deepspeed_config(values, settings, stage, 4, 1, Ranks(rank=0, world_size=1, local_rank=0))
    return start_engine(build_model(shape, config, settings, None), config, settings)


@pytest.mark.usefixtures("process_group")
def test_a_torch_that_cannot_compile_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Python that is newer than what torch.compile knows: torch refuses, DeepSpeed passes it on."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr("torch.compile", refuse)
    shape = model_config({"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}, 50, 3, 12)
    with pytest.raises(
        ConfigError, match=r"training.compile: cannot be used here \(torch.compile is not .* turn it off"
    ):
        small_engine("zero2_cpu", shape, monkeypatch, compile=True)
