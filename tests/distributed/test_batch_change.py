"""The batch of a running job changes at a checkpoint; killed before and after, it ends as if nothing had happened."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from doge_ds import train_base, train_proxy
from doge_ds.command_line import read_run_arguments
from doge_ds.errors import RunError
from doge_ds.export import export_run
from tests.distributed.comparing import count_equal_tensors, metrics_of
from tests.distributed.ranks import Ranks
from tests.distributed.small_runs import SEQUENCE_LENGTH, small_store, write_config

STEPS = 24
FIRST, SECOND = {"a": 0.2, "b": 0.7, "c": 0.1}, {"a": 0.5, "b": 0.0, "c": 0.5}
Job = train_base.BaseJob | train_proxy.ProxyJob


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def facts_of(run: Path) -> dict:
    facts: dict = json.loads((run / "run.json").read_text())
    return facts


def states_of(run: Path) -> dict[int, dict]:
    """What each checkpoint says of the data, by its step."""
    found = {}
    for folder in (run / "checkpoints").glob("step*"):
        state = torch.load(next(folder.glob("*model_states.pt")), weights_only=False)["doge_ds"]
        found[state["step"]] = state["data"]
    return found


def change_twice(
    program: str, run: Path, before: list[str], after: list[str], flags: list[str], check: Callable[..., Job]
) -> int:
    """Stop a run, copy it to `twin` beside it, and end it with the changed batch, killed after the change.

    The twin makes the same change and is left alone.

    Returns:
        The step of the change.
    """
    stopped = Ranks(1, program, *before, "--output", str(run))
    stopped.wait_for_lines(run / "metrics.jsonl", 5)
    stopped.processes[0].send_signal(signal.SIGUSR1)
    assert stopped.finish()[0] == [75]
    step = int((run / "checkpoints/latest").read_text().removeprefix("step"))
    assert 5 <= step < STEPS - 3
    twin = shutil.copytree(run, run.with_name("twin"))

    record = (run / "run.json").read_bytes()
    with pytest.raises(RunError, match=rf"here.*; name another --output, or change .* with {' and '.join(flags)}"):
        check(after, run)
    assert check([*after, *flags], run).batches.changed_at == step
    assert (run / "run.json").read_bytes() == record  # so that a kill before the first step leaves no trace

    never = ["--set", "training.checkpoint_every=1000"]
    killed = Ranks(1, program, *after, *flags, *never, "--output", str(run))
    killed.wait_for_lines(run / "metrics.jsonl", step + 2)
    printed = killed.kill()  # before its first checkpoint
    assert f"this start changes the batch, from step {step} on" in printed
    assert (run / "checkpoints/latest").read_text() == f"step{step:08d}"
    assert check([*after, *flags], run).batches.changed_at is None

    often = ["--set", "training.checkpoint_every=5", "training.keep_checkpoints=100"]
    last = Ranks(1, program, *after, *often, "--output", str(run))
    other = Ranks(1, program, *after, *flags, "--output", str(twin))
    statuses, printed = last.finish()
    assert (statuses, other.finish()[0]) == ([0], [0]), printed
    assert re.search(rf"continues after step {step} of {STEPS}", printed)
    assert metrics_of(run) == metrics_of(twin)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, STEPS + 1))
    assert facts_of(run) == facts_of(twin)

    loader, states = check(after, run).loader, states_of(run)
    assert set(states) == {step, STEPS, *(number for number in range(5, STEPS, 5) if number > step)}
    assert states == {number: loader.state(number) for number in states}
    with pytest.raises(RunError, match=f"has done all its {STEPS} steps"):
        check([*before, *flags], run)
    return step


def test_a_base_changes_its_batch_and_its_mixture(tmp_path: Path, one_rank: None) -> None:
    def check(arguments: list[str], run: Path) -> Job:
        options = read_run_arguments("", [*arguments, "--output", str(run)], needs_mixture=True)
        return train_base.check(options)

    config = write_config(
        tmp_path / "base.json", small_store(tmp_path / "store"), "base", training={"steps": STEPS, "warmup_steps": 1}
    )
    for name, weights in (("first", FIRST), ("second", SECOND)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": 1, "domains": weights}))
    run, common = tmp_path / "run", ["--config", str(config)]
    before = [*common, "--mixture", str(tmp_path / "first.json")]
    after = [*common, "--mixture", str(tmp_path / "second.json"), "--set", "training.global_batch_size=16"]
    step = change_twice("doge_ds/train_base.py", run, before, after, ["--change_mixture", "--change_batch"], check)

    samples = [8 * step, 16 * (STEPS - step)]
    assert facts_of(run)["batches"] == [{"from_step": 0, "sequences": 8}, {"from_step": step, "sequences": 16}]
    lines = metrics_of(run)
    assert [line["tokens"] for line in lines] == [
        SEQUENCE_LENGTH * (8 * min(number, step) + 16 * max(number - step, 0)) for number in range(1, STEPS + 1)
    ]
    for name in "abc":
        due = (FIRST[name] * samples[0] + SECOND[name] * samples[1]) / sum(samples)
        assert facts_of(run)["mixture"][name] == pytest.approx(due)
        assert lines[-1][f"wanted_share/{name}"] == pytest.approx(due)
        assert lines[-1][f"achieved_share/{name}"] == pytest.approx(due, abs=2 / sum(samples))
    weights = [load_file(folder / "hf/model.safetensors") for folder in (run, run.with_name("twin"))]
    assert count_equal_tensors(*weights) > 20
    card = (run / "hf/README.md").read_text()
    assert f"{sum(samples) * SEQUENCE_LENGTH:,} tokens: {step} steps of 8 and {STEPS - step} steps of 16 " in card
    assert f"after step {step} and continued with `training.global_batch_size=16 --change_batch`" in card


def test_a_proxy_changes_its_batch(tmp_path: Path, one_rank: None) -> None:
    def check(arguments: list[str], run: Path) -> Job:
        return train_proxy.check(read_run_arguments("", [*arguments, "--output", str(run)]))

    changes = {"training": {"steps": STEPS}, "doge": {"update_every": 2, "domains_per_step": 2}}
    config = write_config(tmp_path / "proxy.json", small_store(tmp_path / "store"), "proxy", **changes)
    run, before = tmp_path / "run", ["--config", str(config)]
    after = [*before, "--set", "training.sequences_per_domain=6"]
    step = change_twice("doge_ds/train_proxy.py", run, before, after, ["--change_batch"], check)

    assert facts_of(run)["batches"] == [{"from_step": 0, "sequences": 4}, {"from_step": step, "sequences": 6}]
    # Two train domains in a step, and the target in every second.
    rows = [2 + number % 2 for number in range(STEPS)]
    tokens = SEQUENCE_LENGTH * (4 * sum(rows[:step]) + 6 * sum(rows[step:]))
    assert metrics_of(run)[-1]["tokens"] == tokens
    learned = [json.loads((folder / "mixture.json").read_text())["domains"] for folder in (run, run.with_name("twin"))]
    assert learned[0] == learned[1]
    export_run(run, tmp_path / "hf")
    assert (
        f" {tokens:,} tokens: {step} steps of 4 and {STEPS - step} steps of 6 "
        in (tmp_path / "hf/README.md").read_text()
    )
