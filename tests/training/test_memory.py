"""Memory is counted: against sums by hand, and against what real runs on one rank hold."""

import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from doge_ds.config_sections import TrainingConfig
from doge_ds.planning import make_plan
from doge_ds.training.memory import RankMemory, RankShape, Rows, activation_bytes, checkpoint_bytes, rank_memory
from doge_ds.training.model import model_config, parameter_count
from tests.distributed.ranks import ROOT, environment
from tests.stores import make_store

SMALL = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}
LENGTH, VOCABULARY = 16, 100
MODEL = model_config(SMALL, VOCABULARY, 0, LENGTH)
P = parameter_count(MODEL)
LARGEST = 32 * 4 * 32  # the first matrix of a feed-forward layer
BF16 = {"bf16": {"enabled": True}}
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
TOLERANCE = 0.15


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_accelerator().device_name() == "cpu"


def shape(stage: int, ranks: int = 1, torch_adam: bool = False, **changes: Any) -> RankShape:
    zero = {"stage": stage, "reduce_bucket_size": 1000, "overlap_comm": False, **changes.pop("zero", {})}
    deepspeed = {
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": torch_adam}},
        **changes.pop("deepspeed", {}),
    }
    training = TrainingConfig(steps=1, learning_rate=0.1, **changes.pop("training", {}))
    return RankShape(MODEL, deepspeed, training, LENGTH, ranks, 2, changes.pop("accumulates", False), **changes)


def items(memory: RankMemory) -> dict[str, tuple[str, int, int]]:
    return {item.name.partition(" (")[0]: (item.place, item.backward, item.step) for item in memory.items}


def test_zero2_in_bf16_on_gpus_by_hand() -> None:
    """Weights whole in bf16; fp32 weights, moments and gradients in shards; two buckets where reduction overlaps."""
    memory = rank_memory(shape(2, 4, zero={"overlap_comm": True}, deepspeed={**BF16, **FP32_SUMS}))
    shard = -(-P // 4)
    found = items(memory)
    assert found["weights"] == ("device", 2 * P, 2 * P)
    assert found["optimizer"] == ("device", 12 * shard, 12 * shard)
    assert found["gradients"] == ("device", 4 * shard, 4 * shard)
    assert found["optimizer's scratch"] == ("device", 0, 8 * min(LARGEST, shard))
    assert found["gradient buckets"] == ("device", 2 * (2 * 1000 + 1000), 0)
    # DeepSpeed counts 16-bit gradients besides the fp32 ones.
    assert memory.deepspeed_estimate - memory.model_states == pytest.approx(2 * shard, abs=64)


def test_zero2_in_fp32_on_the_host_counts_what_is_written_to() -> None:
    memory = rank_memory(shape(2, 2, torch_adam=True, zero={"reduce_bucket_size": 10**9}, accumulates=True))
    shard = -(-P // 2)
    found = items(memory)
    assert found["weights"] == ("host", 4 * P, 4 * P)
    assert found["gradients"] == ("host", 8 * shard, 8 * shard)
    assert found["optimizer's scratch"] == ("host", 0, 8 * shard)
    assert found["gradient buckets"] == ("host", 8 * P, 0)
    assert memory.total("device") == 0


def test_bf16_gradients_that_are_accumulated_in_bf16_are_made_fp32_in_the_step() -> None:
    found = items(rank_memory(shape(2, deepspeed=BF16)))
    assert found["gradients"] == ("device", 2 * P, 2 * P + 4 * P)
    assert found["optimizer's scratch"][2] == max(2 * P, 8 * LARGEST - 4 * P)


def test_zero3_gathers_weights_and_offloads_what_it_is_told_to() -> None:
    found = items(rank_memory(shape(3, 4, deepspeed={**BF16, **FP32_SUMS})))
    shard = -(-P // 4)
    assert found["weights"] == ("device", 2 * shard, 2 * shard)
    assert found["gathered weights"] == ("device", 2 * P, 0)
    assert found["optimizer"] == ("device", 12 * shard, 12 * shard)
    assert found["gradients"] == ("device", 4 * shard, 8 * shard)
    offload = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    offloaded = items(rank_memory(shape(3, 4, zero=offload, deepspeed={**BF16, **FP32_SUMS})))
    assert offloaded["weights"][0] == offloaded["optimizer"][0] == offloaded["gradients"][0] == "host"
    assert offloaded["gradients"][1:] == (8 * shard, 8 * shard)
    assert offloaded["gathered weights"] == ("device", 2 * P, 0)


def test_zero3_on_one_rank_gathers_nothing() -> None:
    found = items(rank_memory(shape(3, torch_adam=True)))
    assert found["weights"] == ("host", 4 * P, 4 * P)
    assert found["optimizer"] == ("host", 12 * P, 12 * P)
    assert "gathered weights" not in found
    _, passes, step = found["activations and logits"]
    assert passes == step  # freed, and kept by the C library


def test_weights_that_are_used_again_soon_stay_gathered() -> None:
    near = {"stage3_max_reuse_distance": 2000, "stage3_prefetch_bucket_size": 10}
    found = items(rank_memory(shape(3, 2, zero=near)))
    assert found["gathered weights"][1] == 4 * (10 + LARGEST + 4 * 32)  # with its bias


@pytest.mark.parametrize(
    ("rows", "place", "size"),
    [
        (Rows(5, None, False), "device", 5 * 4),
        (Rows(5, 2, False), "device", 5 * 2),
        (Rows(3, 4, True), "host", 3 * 4),
    ],
)
def test_rows_of_a_proxy(rows: Rows, place: str, size: int) -> None:
    shard = -(-P // 2)
    found = items(rank_memory(shape(2, 2, deepspeed={**BF16, **FP32_SUMS}, rows=rows)))
    assert found["rows of domain gradients"] == (place, size * shard, size * shard)


def test_activations_hold_the_logits_and_grow_with_the_micro_batch() -> None:
    one = activation_bytes(shape(2), 4)
    two = activation_bytes(RankShape(**{**vars(shape(2)), "micro_batch_size": 4}), 4)
    assert one is not None
    assert two is not None
    logits = 4 * 2 * (LENGTH - 1) * VOCABULARY
    assert 2 * logits < one < 40 * logits
    assert two == pytest.approx(2 * one, rel=0.1)
    assert activation_bytes(shape(2), 2) < one


def test_a_model_that_fake_tensors_cannot_run_is_planned_without_its_activations() -> None:
    """The product of Phi's experts has a fake form for bfloat16 only."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = model_config({"model_type": "phimoe", **sizes, **experts}, VOCABULARY, 0, LENGTH)
    planned = RankShape(**{**vars(shape(2)), "model": model})
    assert activation_bytes(planned, 4) is None
    found = items(rank_memory(planned))
    assert "activations and logits" not in found
    assert len(found) > 2


def test_gradient_checkpointing_holds_less() -> None:
    deep = model_config({**SMALL, "n_layer": 8}, VOCABULARY, 0, LENGTH)
    plain, checkpointed = (
        activation_bytes(RankShape(**{**vars(shape(2, training={"gradient_checkpointing": on})), "model": deep}), 4)
        for on in (False, True)
    )
    assert checkpointed is not None
    assert plain is not None
    assert checkpointed < 0.6 * plain


def test_counting_leaves_torch_s_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    activation_bytes(shape(2), 4)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_asks_for_numbers_has_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(tokens.sum()))

    monkeypatch.setattr("doge_ds.training.memory.token_losses", ask)
    memory = rank_memory(shape(2))
    assert not memory.activations_known
    assert "activations and logits" not in items(memory)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Both programs on one real rank each, side by side, with a model of 40 million parameters."""
    folder = tmp_path_factory.mktemp("memory")
    generator = np.random.default_rng(1)
    make_store(folder / "store", {name: generator.integers(0, 16_000, 60_000) for name in "ab"}, None, 16_000)
    large = {"model_type": "gpt2", "n_layer": 6, "n_embd": 640, "n_head": 8}
    processes, configs = {}, {}
    for kind, stage in (("proxy", 2), ("base", 3)):
        batch = {"sequences_per_domain": 2} if kind == "proxy" else {"global_batch_size": 4}
        config = {
            "model": large,
            "data": {"path": str(folder / "store"), "sequence_length": 128},
            "training": {"steps": 2, "learning_rate": 1e-4, **batch},
            "deepspeed": str(ROOT / f"ds_configs/zero{stage}_cpu.json"),
        }
        configs[kind] = folder / f"{kind}.json"
        configs[kind].write_text(json.dumps(config))
        warm_up = folder / f"{kind}_warm_up.json"
        warm_up.write_text(json.dumps({**config, "model": SMALL}))
        (folder / kind).mkdir()
        command = [sys.executable, str(ROOT / "tests/distributed/memory_worker.py"), kind]
        command += [str(warm_up), str(configs[kind]), str(folder / kind)]
        processes[kind] = subprocess.Popen(
            command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    found: dict[str, dict[str, Any]] = {}
    for kind, process in processes.items():
        printed, _ = process.communicate(timeout=180)
        assert process.returncode == 0, printed[-3000:]
        saved = sum(file.stat().st_size for file in (folder / kind / "run/checkpoints").rglob("*") if file.is_file())
        plan = make_plan(configs[kind], [], None, 1, None)
        found[kind] = {**json.loads((folder / kind / "memory.json").read_text()), "saved": saved, "plan": plan}
    shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("kind", ["proxy", "base"])
def test_the_planned_memory_is_what_a_real_rank_holds(kind: str, measured: dict[str, dict[str, Any]]) -> None:
    found = measured[kind]
    held = found["peak"] - found["before"]
    planned = found["plan"].ranks[0].memory.total("host")
    print(f"{kind}: planned {planned / 1e6:.0f} MB, held {held / 1e6:.0f} MB of {found['peak'] / 1e6:.0f}")
    assert planned == pytest.approx(held, rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["proxy", "base"])
def test_the_planned_checkpoint_is_what_is_on_disk(kind: str, measured: dict[str, dict[str, Any]]) -> None:
    assert measured[kind]["plan"].checkpoints.one == pytest.approx(measured[kind]["saved"], rel=0.02)
    assert checkpoint_bytes(shape(3)) == 12 * P
