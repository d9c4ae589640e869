"""Two ranks measure what one does, and end alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.perplexity_worker import measure
from tests.distributed.ranks import run_worker

WORLD_SIZE = 2


def tokens(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 20, count).tolist()


CASES = {
    "windows that share one token": {"tokens": tokens(700), "options": {"sequence_length": 16}, "batch_size": 5},
    "overlapping": {"tokens": tokens(300), "options": {"sequence_length": 16, "stride": 7}, "batch_size": 4},
    "masked": {"tokens": tokens(300), "options": {"sequence_length": 16, "document_mask": True}, "batch_size": 4},
    "one window for two ranks": {"tokens": tokens(9), "options": {"sequence_length": 16}, "batch_size": 4},
    "as many as ranks": {"tokens": tokens(20), "options": {"sequence_length": 16}, "batch_size": 1},
}
# A token that only the last windows have: the first rank sees nothing of it.
DAMAGED = {**CASES["overlapping"], "tokens": [*tokens(299), 22, 1, 1], "damaged_token": 22}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """[ranks][cases], from one start."""
    folder = tmp_path_factory.mktemp("perplexity")
    (folder / "cases.json").write_text(json.dumps([*CASES.values(), DAMAGED]))
    run_worker(WORLD_SIZE, "perplexity_worker.py", str(folder / "cases.json"), str(folder))
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_losses_of_one(name: str, found: list[list[dict]]) -> None:
    place = list(CASES).index(name)
    alone = measure(CASES[name], (0, 1))
    first, second = (of_rank[place] for of_rank in found)
    assert first["nats"] == second["nats"]
    assert first["tokens"] == second["tokens"] == alone["tokens"]
    assert first["nats"] == pytest.approx(alone["nats"], rel=1e-6)
    assert first["told"] + second["told"] == alone["told"] == len(CASES[name]["tokens"])
    assert abs(first["told"] - second["told"]) <= 2 * 15


def test_a_likelihood_that_is_not_finite_on_one_rank_ends_all(found: list[list[dict]]) -> None:
    first, second = (of_rank[-1] for of_rank in found)
    assert first == second
    assert first["error"].startswith("the model on d: gives a log-likelihood of nan")
