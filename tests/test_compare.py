"""`doge-ds compare`, really run: stopped, killed, continued, changed; and what it refuses before anything runs."""

import json
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from doge_ds import cli
from tests.distributed.ranks import Rank, environment, patched_environment
from tests.distributed.small_runs import small_store
from tests.experiments.comparisons import write_comparison

STEPS = 60  # of 10 to 20 ms each: long enough for a signal in the middle


class Compared:
    """One comparison in one folder, started again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        self.path = write_comparison(folder, small_store(folder / "store"), steps=STEPS)

    def words(self, *more: str) -> list[str]:
        return ["compare", "--config", str(self.path), "--output", str(self.output), "--parallel", "2", *more]

    def run(self, *more: str) -> int:
        with patched_environment(environment()):
            return cli.main(self.words(*more))

    def stage(self, kind: str, label: str, seed: int) -> Path:
        (found,) = [path for path in self.output.glob(f"stages/{kind}-{label}-s{seed}-*") if path.is_dir()]
        return found

    def directories(self) -> dict[str, float]:
        """When each stage's result was written; 0 for those that have none."""
        found = {}
        for path in self.output.glob("stages/*"):
            if path.is_dir():
                results = [path / name for name in ("mixture.json", "hf/config.json", "results.json")]
                found[path.name] = max((file.stat().st_mtime for file in results if file.exists()), default=0.0)
        return found

    def interrupted(self, is_time: Callable[[], bool], number: signal.Signals, *more: str) -> tuple[int, str]:
        """Start it, and signal it when the time has come; status and what it printed, when its stages are gone too."""
        process = Rank("doge_ds/cli.py", self.words(*more), environment())
        self.wait(is_time, process)
        children = psutil.Process(process._process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        status = process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        return status, process.printed()

    def wait(self, is_so: Callable[[], bool], process: Rank) -> None:
        until = time.monotonic() + 240
        while not is_so():
            assert time.monotonic() < until, process.printed()
            assert process.poll() is None, process.printed()
            time.sleep(0.002)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """It has been stopped by SIGTERM while stages trained, killed by SIGKILL, and run to its end."""
    it = Compared(tmp_path_factory.mktemp("compare"))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return it


def lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def starts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def test_stopped_killed_and_run_to_its_end(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    def trains() -> bool:
        return any(lines(run) >= 2 for run in compared.output.glob("stages/*-s0-*") if run.is_dir())

    status, printed = compared.interrupted(trains, signal.SIGTERM)
    assert (status, "the same command goes on" in printed) == (75, True), printed
    finished = compared.directories()
    stopped = [run for run in compared.output.glob("stages/*-s0-*") if lines(run) and not finished[run.name]]
    assert stopped
    assert not json.loads((compared.output / "c/summary.json").read_text())["complete"]
    saved = {run: max(path.name for path in (run / "checkpoints").glob("step*")) for run in stopped}

    def has_a_result() -> bool:
        return any(written > finished.get(name, 0) for name, written in compared.directories().items())

    status, printed = compared.interrupted(has_a_result, signal.SIGKILL)
    assert status == -signal.SIGKILL
    before = {name: written for name, written in compared.directories().items() if written}

    assert compared.run() == 0, capsys.readouterr().err
    after = compared.directories()
    assert len(after) == 10
    assert all(after.values())
    assert {name: after[name] for name in before} == before
    for run, checkpoint in saved.items():  # went on where SIGTERM had stopped it
        assert lines(run) == STEPS
        assert starts(run)[1]["after_step"] >= int(checkpoint.removeprefix("step"))
    capsys.readouterr()
    assert compared.run() == 0
    assert compared.directories() == after
    printed = capsys.readouterr().out
    assert printed.splitlines() == [f"written: {compared.output}/c/{name}" for name in ("summary.json", "report.html")]


def test_the_summary_says_what_the_stages_left(compared: Compared) -> None:
    summary = json.loads((compared.output / "c/summary.json").read_text())
    assert summary["complete"]
    doge, uniform = summary["mixtures"]["doge"], summary["mixtures"]["uniform"]
    results: dict[tuple[str, int], dict[str, Any]] = {
        (name, seed): json.loads((compared.stage("eval", name, seed) / "results.json").read_text())["perplexity"]
        for name in ("uniform", "doge")
        for seed in (0, 1)
    }
    for domain in "abcx":
        values = [results["doge", seed]["domains"][domain]["log_perplexity"] for seed in (0, 1)]
        others = [results["uniform", seed]["domains"][domain]["log_perplexity"] for seed in (0, 1)]
        assert doge["log_perplexity"][domain]["by_seed"] == {"0": values[0], "1": values[1]}
        difference = doge["differences"]["domains"][domain]
        assert difference["mean"] == pytest.approx(statistics.mean(values) - statistics.mean(others))
        assert difference["low"] < difference["mean"] < difference["high"]
    average = [results["doge", seed]["average_log_perplexity"] for seed in (0, 1)]
    assert doge["average_log_perplexity"]["all"]["mean"] == pytest.approx(statistics.mean(average))
    weights = json.loads((compared.stage("proxy", "doge", 0) / "mixture.json").read_text())["domains"]
    assert {name: of["by_seed"]["0"] for name, of in doge["weights"].items()} == weights
    assert (doge["method"], uniform["method"], uniform["mixture"]) == ("doge", None, "uniform")
    assert (uniform["differences"], uniform["trajectory"], uniform["cost"]["proxy"]) == (None, None, None)
    last = json.loads((compared.stage("base", "doge", 1) / "metrics.jsonl").read_text().splitlines()[-1])
    assert doge["cost"]["base"]["tokens"] == last["tokens"] == STEPS * 8 * 16
    assert doge["cost"]["total"]["flops"] == doge["cost"]["base"]["flops"] + doge["cost"]["proxy"]["flops"]
    assert doge["trajectory"]["steps"] == list(range(1, STEPS + 1))
    assert doge["gram_cosines"]["rows"] == ["a", "b", "c", "x"]
    assert doge["stages"]["1"]["base"] == f"stages/{compared.stage('base', 'doge', 1).name}"
    assert "<html" in (compared.output / "c/report.html").read_text()
    assert summary["machine"] == {"cores": os.cpu_count(), "devices": "cpu"}
    assert compared.run("--summarize") == 0
    assert json.loads((compared.output / "c/summary.json").read_text()) == summary  # of what it was run on, too


def test_a_changed_key_redoes_what_depends_on_it(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    before = compared.directories()
    change = ["--set", 'evaluation.domains=["x"]', "seeds=[0]"]  # proxies and bases: tests/experiments/test_chains.py
    assert compared.run(*change) == 0, capsys.readouterr().err
    after = compared.directories()
    assert {name: after[name] for name in before} == before
    new = sorted(name.rpartition("-")[0] for name in after.keys() - before.keys())
    assert new == ["eval-doge-s0", "eval-uniform-s0"]
    summary = json.loads((compared.output / "c/summary.json").read_text())
    assert (summary["groups"], summary["seeds"]) == ({"all": ["x"]}, [0])


def test_dry_run_says_what_is_done_and_runs_nothing(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    before = compared.directories()
    assert compared.run("--dry_run", "--set", "proxy_settings.doge.mu=0.5") == 0
    printed = capsys.readouterr().out.splitlines()
    to_do = [line.split()[2:5] for line in printed if line.startswith("to do ")]
    assert to_do == [[kind, "of", "doge,"] for _ in (0, 1) for kind in ("proxy", "base", "eval")]
    assert sum(line.startswith("done ") for line in printed) == 4
    assert printed[-1].startswith("6 of 10 stages to do, ")
    assert compared.run("--dry_run", "--set", "proxy_settings.doge.mu=0.5", "--only", "proxies") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 of 2 stages to do, ")
    assert compared.run("--dry_run", "--only", "references") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 of 0 stages to do")
    assert compared.directories() == before


def test_a_page_that_cannot_be_made_keeps_no_other_from_being_written(
    compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copyfile(compared.path, compared.folder / "b.json")
    pages = [compared.output / name / "report.html" for name in ("b", "c", ".")]
    pages[0].parent.mkdir()
    pages[0].write_text("a user's own")
    for page in pages[1:]:
        page.unlink(missing_ok=True)
    words = ["compare", "--config", str(other), str(compared.path), "--output", str(compared.output), "--summarize"]
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    assert printed.err == f"error: {pages[0]}: exists and is no report of ours; name another file\n"
    written = ["b/summary.json", "c/summary.json", "c/report.html", "report.html"]
    assert printed.out.splitlines()[1:] == [f"written: {compared.output / name}" for name in written]
    assert all("<html" in page.read_text() for page in pages[1:])
    # Where there is something to run, it is said before.
    change = ["--set", "proxy_settings.doge.mu=0.7"]
    before = compared.directories()
    assert cli.main([*words[:-1], *change]) == 2
    assert capsys.readouterr().err == f"error: {pages[0]}: exists and is no report of ours; name another file\n"
    assert compared.directories() == before
    assert pages[0].read_text() == "a user's own"


def test_one_comparison_a_folder(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(compared.output / ".compare.lock"):
        assert compared.run() == 2
    message = f"error: {compared.output}: is being written by another doge-ds compare; wait for its end\n"
    assert capsys.readouterr().err == message


def test_a_stage_that_fails_is_shown_and_holds_up_only_what_depends_on_it(
    compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of somebody else's where the proxy's run should be."""
    change = ["--set", "proxy_settings.doge.mu=0.5", "seeds=[0]"]
    assert compared.run("--dry_run", *change) == 0
    place = Path(next(line.split()[-1] for line in capsys.readouterr().out.splitlines() if "to do  proxy" in line))
    place.mkdir()
    (place / "notes.txt").touch()
    assert compared.run(*change) == 1
    printed = capsys.readouterr().err
    assert f"error: proxy of doge, seed 0: ended with status 2; its last lines, all are in {place}.log:" in printed
    assert f"error: {place}: exists and is no run of ours; name another --output" in printed
    assert printed.endswith("2 stages that depend on others were not run\n")
    summary = json.loads((compared.output / "c/summary.json").read_text())
    assert not summary["complete"]
    assert summary["mixtures"]["doge"]["weights"] == {}
    assert summary["mixtures"]["uniform"]["log_perplexity"]["a"]["by_seed"].keys() == {"0"}


def test_ranks_below_a_launcher_save_too(compared: Compared) -> None:
    """deepspeed's own command would die of the signal, and leave its ranks alone."""

    def trains() -> bool:
        return any(lines(run) >= 2 for run in compared.output.glob("stages/proxy-doge-s7-*") if run.is_dir())

    more = ["--ranks", "2", "--parallel", "1", "--only", "proxies", "--set", "seeds=[7]"]
    status, printed = compared.interrupted(trains, signal.SIGTERM, *more)
    assert (status, "proxy of doge, seed 7: saved, not finished" in printed) == (75, True), printed
    run = compared.stage("proxy", "doge", 7)
    assert 0 < lines(run) < STEPS
    assert (run / "checkpoints/latest").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "none.json"], "none.json: cannot be read"),
        (["--config", "a/c.json", "b/c.json"], "--config a/c.json: FOLDER/c would hold something else too"),
        (["--config", "stages.json"], "--config stages.json: FOLDER/stages would hold something else too"),
        (["--config", "c.json", "--parallel", "0"], "argument --parallel: invalid positive whole number value: '0'"),
        (["--config", "c.json", "--only", "proxy"], "argument --only: invalid choice: 'proxy'"),
        (["--config", "report.html.json"], "FOLDER/report.html would hold something else too"),
        (["--config", ".compare.lock.json"], "FOLDER/.compare.lock would hold something else too"),
        (["--config", "c.json", "--summarize", "--output", "o"], "o: has no finished stage of these comparisons"),
        (["--config", "c.json", "--output", "a [1]"], "a [1]: has [, * or ? in its path"),
        (["--config", "c.json", "--set", "seeds"], "--set seeds: is no assignment"),
        (["--config", "c.json", "--output", "store/manifest.json"], "--output store/manifest.json: cannot be written"),
    ],
)
def test_a_mistake_is_one_line(
    compared: Compared,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(compared.folder)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert cli.main(["compare", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
