"""All the communication that DoGE adds to the backward passes is one small all-reduce a step."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.collectives import Collective
from tests.distributed.ranks import run_worker
from tests.distributed.scenarios import BF16_BUFFER, SMALL_BUCKETS, scenario

WORLD_SIZE = 2
SCENARIOS = [
    scenario("all", doge={"preset": "paper"}),
    scenario("two_outside_in_micro_batches", ["x", "y"], training={"micro_batch_size": 2}),
    scenario("mix_small_buckets_overlapping", "mix", deepspeed=SMALL_BUCKETS),
    scenario("others_bf16_buffer", "others", deepspeed=BF16_BUFFER),
]
each_scenario = pytest.mark.parametrize("one", SCENARIOS, ids=lambda one: one["name"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every rank recorded, of all scenarios, from one start."""
    folder = tmp_path_factory.mktemp("collectives")
    (folder / "scenarios.json").write_text(json.dumps(SCENARIOS))
    run_worker(WORLD_SIZE, "collectives_worker.py", str(folder / "scenarios.json"), str(folder))
    return folder


def read(folder: Path, one: dict[str, Any], rank: int = 0) -> tuple[dict[str, list[Collective]], int]:
    """Collectives of each kind of step, and the number of the model's parameters."""
    found = json.loads((folder / f"{one['name']}.{rank}.json").read_text())
    parameters = found.pop("parameters")
    return {kind: [Collective(*call) for call in calls] for kind, calls in found.items()}, parameters


def added(calls: list[Collective], plain: list[Collective]) -> list[Collective]:
    """What the calls have beyond plain DeepSpeed's; all of these must be there as well."""
    assert not Counter(plain) - Counter(calls)
    return list((Counter(calls) - Counter(plain)).elements())


@each_scenario
def test_an_update_adds_one_all_reduce_of_gram_matrix_and_losses(one: dict[str, Any], folder: Path) -> None:
    calls, _ = read(folder, one)
    (extra,) = added(calls["update"], calls["plain_update"])
    rows = len(one["rows"])
    assert extra.name == "allreduce"
    assert extra.numbers <= rows**2 + rows + 8
    assert extra.bytes == 8 * extra.numbers


@each_scenario
def test_a_step_between_updates_adds_one_all_reduce_of_losses(one: dict[str, Any], folder: Path) -> None:
    calls, _ = read(folder, one)
    (extra,) = added(calls["between"], calls["plain_between"])
    assert extra.name == "allreduce"
    assert extra.numbers <= len(one["rows"]) + 8


@each_scenario
def test_the_record_is_complete(one: dict[str, Any], folder: Path) -> None:
    """Every backward pass reduces every parameter once; both ranks take part in the same collectives."""
    calls, parameters = read(folder, one)
    assert read(folder, one, rank=1)[0] == calls
    micro_batches = 2 if "micro_batches" in one["name"] else 1
    for kind, rows in (("update", len(one["rows"])), ("between", one["train_rows"])):
        for side in (kind, f"plain_{kind}"):
            reduced = sum(call.numbers for call in calls[side] if call.name == "allreduce")
            few = 40 + 2 * rows**2
            assert 0 <= reduced - rows * micro_batches * parameters < few, side
