"""A rank that hangs is named and takes the others down; a run whose loss is NaN ends and says where it was good."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from doge_ds.training.watchdog import SECONDS_BETWEEN_BEATS
from tests.distributed.ranks import Ranks
from tests.distributed.small_runs import small_store, write_config

PROXY, BASE = "doge_ds/train_proxy.py", "doge_ds/train_base.py"
TIMEOUT = 6.0  # longer than a busy machine takes for a step


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("watching") / "store")


@pytest.fixture(scope="module")
def asleep(store: Path) -> Ranks:
    """Ranks that take a while to notice, while another test runs."""
    return Ranks(2, "tests/distributed/asleep_worker.py")


@pytest.mark.usefixtures("asleep")
def test_a_rank_that_stands_still_is_named_in_time_and_prints_its_stack_when_it_is_asked(
    store: Path, tmp_path: Path
) -> None:
    many = {"steps": 100_000, "rank_timeout": TIMEOUT, "checkpoint_every": 100_000}
    data = {"max_epochs": 1e9}
    config = write_config(tmp_path / "run.json", store, "base", training=many, data=data)
    run = tmp_path / "run"
    ranks = Ranks(2, BASE, "--config", str(config), "--mixture", "uniform", "--output", str(run))
    ranks.wait_for_lines(run / "metrics.jsonl", 12)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    ranks.wait_until(lambda: "MainThread (most" in ranks.processes[1].printed())
    lines = (run / "metrics.jsonl").read_text().count("\n")
    ranks.wait_for_lines(run / "metrics.jsonl", lines + 3)  # it went on
    time.sleep(1.5 * SECONDS_BETWEEN_BEATS)  # so that it has said where it is
    ranks.processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert ranks.processes[0].wait(timeout=60) == 1
    assert TIMEOUT < time.monotonic() - began < TIMEOUT + 30
    printed = ranks.processes[0].printed()
    message = (
        r"error: no step was finished for 6 seconds; the ranks: rank 1 \(process \d+ on \S+\) does not answer, "
        r"last seen in step \d+; see what its node"
    )
    assert re.search(message, printed), printed
    ranks.processes[1].send_signal(signal.SIGKILL)
    ranks.processes[1].wait(timeout=10)


def test_a_rank_that_does_something_else_than_wait_is_named_with_its_place_and_prints_its_stack(asleep: Ranks) -> None:
    statuses, _ = asleep.finish(60)
    assert statuses == [1, 1]
    waiting, sleeping = (process.printed() for process in asleep.processes)
    message = (
        r"error: no step was finished for 3 seconds; the ranks: rank 1 \(process \d+ on \S+\) does not go on, "
        r"last seen in step 7, at \S+asleep_worker\.py:\d+ \(fall_asleep\); see what its node"
    )
    assert re.search(message, waiting), waiting
    assert re.search(message, sleeping), sleeping
    assert re.search(r'asleep_worker\.py", line \d+ in fall_asleep', sleeping)
    assert "in fall_asleep" not in waiting


def test_a_run_whose_loss_is_nan_ends_with_the_samples_and_the_last_good_checkpoint(
    store: Path, tmp_path: Path
) -> None:
    """A warm-up towards an absurd learning rate."""
    training = {"checkpoint_every": 3, "learning_rate": 1e38, "gradient_clipping": 0.0, "warmup_steps": 30}
    config = write_config(tmp_path / "run.json", store, "proxy", training={**training, "stop_after_bad_steps": 4})
    (status,), printed = Ranks(1, PROXY, "--config", str(config), "--output", str(tmp_path / "run")).finish()
    assert status == 1
    (message,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert re.search(r"all steps from (\d+) to (\d+): had a loss or gradient that is NaN or infinite", message)
    first, last = map(int, re.findall(r"all steps from (\d+) to (\d+)", message)[0])
    assert last - first == 3
    assert f"samples of the last: a {4 * (last - 1)} to {4 * last - 1}, b " in message
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    assert [line["step"] for line in lines if "warnings" in line][-4:] == list(range(first, last + 1))
    checkpoints = sorted((tmp_path / "run/checkpoints").glob("step????????"))
    good = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint before it"
    assert good in message
    assert all(int(path.name.removeprefix("step")) < first for path in checkpoints)
    assert not (tmp_path / "run/mixture.json").exists()
