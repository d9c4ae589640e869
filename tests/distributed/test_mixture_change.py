"""The mixture of a running job changes at a checkpoint; killed before and after, it ends as its schedule would."""

import json
import re
from pathlib import Path

import pytest

from doge_ds import train_base
from doge_ds.command_line import read_run_arguments
from doge_ds.errors import RunError
from tests.distributed.comparing import metrics_of
from tests.distributed.ranks import Ranks
from tests.distributed.small_runs import small_store, write_config

PROGRAM = "doge_ds/train_base.py"
FIRST, SECOND = {"a": 0.2, "b": 0.7, "c": 0.1}, {"a": 0.5, "b": 0.0, "c": 0.5}


def write_mixture(path: Path, weights: dict[str, float]) -> str:
    path.write_text(json.dumps({"version": 1, "domains": weights, "source": {"tokenizer_sha256": "0" * 64}}))
    return str(path)


def facts_of(run: Path) -> dict:
    facts: dict = json.loads((run / "run.json").read_text())
    return facts


def test_a_change_that_is_killed_ends_as_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path / "base.json", small_store(tmp_path / "store"), "base")
    first, second = (
        write_mixture(tmp_path / name, weights) for name, weights in (("first.json", FIRST), ("second.json", SECOND))
    )
    run = tmp_path / "run"
    common = ["--config", str(config), "--output", str(run)]

    killed = Ranks(1, PROGRAM, *common, "--mixture", first)
    killed.wait_for_lines(run / "metrics.jsonl", 9)
    assert "the mixture: the weights were learned with another tokenizer (0000" in killed.kill()
    step = int((run / "checkpoints/latest").read_text().removeprefix("step"))
    assert 0 < step < 36
    before = (run / "run.json").read_bytes()

    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "::1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)

    def check(*more: str) -> train_base.BaseJob:
        return train_base.check(read_run_arguments("", [*common, *more], needs_mixture=True))

    refused = r"mixture.a is 0.2 there and 0.5 here, .*; name another --output, or change .* with --change_mixture"
    with pytest.raises(RunError, match=refused):
        check("--mixture", second)
    assert check("--mixture", second, "--change_mixture").mixture.changed_at == step
    assert (run / "run.json").read_bytes() == before  # so that a kill before the first step leaves no trace

    changing = ["--mixture", second, "--change_mixture", "--set", "training.checkpoint_every=1000"]
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:step]))  # as a start does, but before we wait
    killed = Ranks(1, PROGRAM, *common, *changing)
    killed.wait_for_lines(run / "metrics.jsonl", step + 2)
    printed = killed.kill()  # before its first checkpoint
    assert f"this start changes the mixture, from step {step} on" in printed
    assert int((run / "checkpoints/latest").read_text().removeprefix("step")) == step
    schedule = [{"from_step": 0, "mixture": FIRST}, {"from_step": step, "mixture": SECOND}]
    assert facts_of(run)["schedule"] == schedule
    assert check("--mixture", second, "--change_mixture").mixture.changed_at is None
    with pytest.raises(RunError, match="holds another run: mixture"):
        check("--mixture", first)
    (tmp_path / "stages.json").write_text(json.dumps({"version": 1, "schedule": schedule}))
    at_once = tmp_path / "at_once"
    of_stages = ["--config", str(config), "--mixture", str(tmp_path / "stages.json"), "--output", str(at_once)]
    last, other = Ranks(1, PROGRAM, *common, "--mixture", second), Ranks(1, PROGRAM, *of_stages)
    statuses, printed = last.finish()
    assert (statuses, other.finish()[0]) == ([0], [0]), printed
    assert re.search(rf"continues after step {step} of 40", printed)
    assert facts_of(run)["schedule"] == schedule
    assert facts_of(run)["mixture_given"] == [{"from_step": 0, "mixture": SECOND}]
    with pytest.raises(RunError, match="has done all its 40 steps"):
        check("--mixture", first, "--change_mixture")

    assert metrics_of(run) == metrics_of(at_once)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, 41))
    last_line = metrics_of(run)[-1]
    for name in "abc":
        due = (FIRST[name] * step + SECOND[name] * (40 - step)) / 40
        assert last_line[f"wanted_share/{name}"] == pytest.approx(due)
        assert last_line[f"achieved_share/{name}"] == pytest.approx(due, abs=2 / (40 * 8))
    card = (run / "hf/README.md").read_text()
    assert '"from_step": 0' in card
    assert "mean weight in the mixture" in card
    # The resolved configuration stands alone, and is the same run.
    alone = read_run_arguments("", ["--config", str(run / "config.json"), "--output", str(run)], needs_mixture=True)
    assert train_base.check(alone).directory.is_finished
