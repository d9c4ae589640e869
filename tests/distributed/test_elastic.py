"""A run goes on with another number of ranks and another micro-batch: 4 -> 2 -> 1 -> 3, ZeRO-2 and ZeRO-3."""

import json
import re
from pathlib import Path

import pytest

from tests.distributed.comparing import metrics_of
from tests.distributed.ranks import run_worker
from tests.distributed.small_runs import small_store, write_config

STEPS = 80
# Ranks, the step after which they stop, and the micro-batch, of 12 sequences a step.
LEGS = ((4, 20, 1), (2, 40, 3), (1, 60, 2), (3, STEPS, 4))
# Dropout is drawn for each rank, so it would differ.
MODEL = {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "n_head": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages as four legs, and undisturbed on one rank; what the legs printed."""
    folder = tmp_path_factory.mktemp("elastic")
    store = small_store(folder / "store")
    (folder / "mixture.json").write_text('{"version": 1, "domains": {"a": 0.2, "b": 0.7, "c": 0.1}}')
    shared = {"steps": STEPS, "checkpoint_every": 500, "weight_decay": 0.5, "keep_checkpoints": 9}
    write_config(folder / "proxy.json", store, "proxy", model=MODEL, training={**shared, "sequences_per_domain": 12})
    write_config(folder / "base.json", store, "base", model=MODEL, training={**shared, "global_batch_size": 12})
    for ranks, until, micro_batch_size in LEGS:
        settings = [
            f"training.micro_batch_size={micro_batch_size}",
            f"training.keep_universal={str(ranks == 3).lower()}",
        ]
        printed = run_worker(ranks, "elastic_worker.py", str(folder), str(until), *settings)
        (folder / f"printed{ranks}").write_text(printed)
    return folder


@pytest.mark.parametrize("stage", ["proxy", "base"])
def test_every_step_is_that_of_one_undisturbed_rank(folder: Path, stage: str) -> None:
    alone, elastic = metrics_of(folder / f"{stage}_alone"), metrics_of(folder / f"{stage}_elastic")
    assert [line["step"] for line in elastic] == [line["step"] for line in alone] == list(range(1, STEPS + 1))
    starts = [json.loads(line) for line in (folder / f"{stage}_elastic/starts.jsonl").read_text().splitlines()]
    assert [start["ranks"] for start in starts] == [4, 2, 1, 3]
    changes = [start["after_step"] for start in starts[1:]]
    assert all(0 <= found - wanted <= 5 for found, (_, wanted, _) in zip(changes, LEGS, strict=False)), changes
    compared = 0
    for one, other in zip(alone, elastic, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name.startswith(("loss", "weight", "mean_weight", "achieved_share")):
                assert other[name] == pytest.approx(value, abs=1e-5), (name, one["step"])
                compared += 1
            elif name == "gram":
                norm = max(map(max, value))
                for row, other_row in zip(value, other["gram"], strict=True):
                    assert other_row == pytest.approx(row, abs=1e-5 * norm)
    assert compared >= 4 * STEPS
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.2


def test_each_change_converts_once_and_leaves_what_was_asked_for(folder: Path) -> None:
    for before, after in ((4, 2), (2, 1), (1, 3)):
        printed = (folder / f"printed{after}").read_text()
        assert len(re.findall(rf"converts step\d+ from {before} to {after} ranks, once", printed)) == 2
    for stage in ("proxy", "base"):
        kept = sorted(path.name for path in (folder / f"{stage}_elastic/checkpoints").glob("*.universal"))
        assert len(kept) == 1  # of the last leg, where keep_universal was on
        assert 60 <= int(kept[0].removeprefix("step").removesuffix(".universal")) <= 65
    assert "converts" not in (folder / "printed4").read_text()
