"""DeepSpeed's monitors: where they write, what they are given, and what is refused."""

import csv
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from doge_ds.errors import ConfigError
from doge_ds.training.monitor import monitor_settings, open_monitor, write_scalars


def test_tensorboard_is_on_and_in_the_run_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    here = {"enabled": True, "output_path": str(tmp_path), "job_name": "tensorboard"}
    assert monitor_settings({"bf16": {"enabled": True}}, tmp_path) == {"tensorboard": here}
    assert monitor_settings({"tensorboard": {"enabled": False}}, tmp_path)["tensorboard"]["enabled"] is False
    elsewhere = {"enabled": True, "output_path": "/logs", "job_name": "mine"}
    assert monitor_settings({"tensorboard": elsewhere}, tmp_path) == {"tensorboard": elsewhere}
    shared = {"output_path": "/logs"}  # every run its own folder there, and it stays on, unlike DeepSpeed's default
    there = {"enabled": True, "output_path": "/logs", "job_name": tmp_path.name}
    assert monitor_settings({"tensorboard": shared}, tmp_path) == {"tensorboard": there}
    assert shared == {"output_path": "/logs"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tensorboard": {"enabled": "perhaps"}}, "deepspeed.tensorboard.enabled: Input should be a valid boolean"),
        ({"csv_monitor": {"enable": True}}, "deepspeed.csv_monitor.enable: Extra inputs are not permitted"),
        ({"wandb": {"enabled": True}}, "deepspeed.wandb: needs the package wandb; pip install wandb"),
        ({"comet": {"enabled": True}}, "deepspeed.comet: needs the package comet_ml; pip install comet_ml"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(
    config: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    absent = ("wandb", "comet_ml")  # here, wherever the tests run
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name in absent else find_spec(name, *more)
    )
    with pytest.raises(ConfigError) as caught:
        monitor_settings(config, tmp_path)
    assert message in str(caught.value)


def test_a_new_run_leaves_another_runs_csv_files_alone(tmp_path: Path) -> None:
    config = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path / "logs"), "job_name": "proxy"}}
    (tmp_path / "logs/proxy").mkdir(parents=True)
    monitor_settings(config, tmp_path / "run")
    (tmp_path / "logs/proxy/loss.csv").write_text("step,loss\r\n1,2.5\r\n")
    with pytest.raises(
        ConfigError, match=r"deepspeed\.csv_monitor: .*/logs/proxy holds CSV files of another run; name"
    ):
        monitor_settings(config, tmp_path / "run")
    monitor_settings({"csv_monitor": {**config["csv_monitor"], "enabled": False}}, tmp_path / "run")
    monitor_settings({"csv_monitor": {**config["csv_monitor"], "job_name": "mine"}}, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").touch()  # this run has logged: the rows are its own
    monitor_settings(config, tmp_path / "run")


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_scalars_reach_tensorboard_and_csv_files_once_a_step_also_after_a_restart(
    elsewhere: bool, tmp_path: Path
) -> None:
    run, logs = tmp_path / "run", tmp_path / "logs"
    section = {"enabled": True, "output_path": str(logs) if elsewhere else ""}
    config = {"tensorboard": section, "csv_monitor": section}
    tensorboard, csv_files = (logs / "run", logs / "run") if elsewhere else (run / "tensorboard", run / "csv_monitor")
    neighbour = csv_files.with_name("neighbour") / "loss.csv"  # of another job, or in a folder of the user's
    run.mkdir()
    neighbour.parent.mkdir(parents=True)
    neighbour.write_text("step,loss\r\n8,2.5\r\n")
    lines = [
        {"step": step, "loss": 3.0 - step / 8, "loss/web": 2.5, "applied": True, "gram": [[1.0]], "score/web": None}
        for step in range(1, 9)
    ]
    for first_step, last_step in ((0, 6), (4, 8)):  # killed after step 6; the checkpoint was of step 4
        monitor = open_monitor(monitor_settings(config, run), first_step, run)
        (run / "metrics.jsonl").touch()  # as run.py does before its first scalars
        for line in lines[first_step:last_step]:
            write_scalars(monitor, line, line["step"])
        write_scalars(monitor, {"step": last_step, "loss/bad": float("nan")}, last_step)
    events = EventAccumulator(str(tensorboard), {"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "loss/web", "applied"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert [event.value for event in events.Scalars("applied")] == [1.0] * 8
    assert {file.name for file in csv_files.glob("*.csv")} == {"loss.csv", "loss_web.csv", "applied.csv"}
    assert csv_rows(csv_files / "loss_web.csv") == [["step", "web"], *([str(step), "2.5"] for step in range(1, 9))]
    rows = csv_rows(csv_files / "loss.csv")
    assert rows[0] == ["step", "loss"]
    assert [(int(step), json.loads(loss)) for step, loss in rows[1:]] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert neighbour.read_bytes() == b"step,loss\r\n8,2.5\r\n"


def csv_rows(file: Path) -> list[list[str]]:
    with file.open(newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("left", "rows"),
    [
        ("", ["3,0.5"]),  # killed between opening and writing, or a full disk
        ("st", ["3,0.5"]),
        ("step,loss\r", ["3,0.5"]),
        ("step,loss\r\n", ["3,0.5"]),
        ("step,loss\r\n1,2.5\r\n2,2.2", ["1,2.5", "3,0.5"]),  # the end of 2.25 is missing
        ("step,loss\r\n1,2.5\r\n2", ["1,2.5", "3,0.5"]),
        # Continued twice where nothing was cut.
        ("step,loss\r\n1,2.5\r\n2,2.0\r\nstep,loss\r\n2,2.25\r\n3,1.0\r\n", ["1,2.5", "2,2.25", "3,0.5"]),
    ],
)
def test_a_run_goes_on_whatever_a_kill_left_of_a_csv_file(left: str, rows: list[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "csv_monitor").mkdir()
    (tmp_path / "csv_monitor/loss.csv").write_bytes(left.encode())
    notes = tmp_path / "csv_monitor/notes.csv"  # the user's own
    notes.write_text("run,remark\n3,good")
    monitor = open_monitor(monitor_settings({"csv_monitor": {"enabled": True}}, tmp_path), 2, tmp_path)
    write_scalars(monitor, {"loss": 0.5}, 3)
    assert (tmp_path / "csv_monitor/loss.csv").read_bytes().decode().split("\r\n") == ["step,loss", *rows, ""]
    assert notes.read_text() == "run,remark\n3,good"


class FakeServices:
    """`wandb` and `comet_ml`, which send to somebody's servers, as far as DeepSpeed's monitors call them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: dict[str, dict[str, Any]] = {}
        self.received: dict[str, list[tuple[str, float, int]]] = {"wandb": [], "comet_ml": []}
        wandb, comet = ModuleType("wandb"), ModuleType("comet_ml")
        wandb.init, wandb.log = self._init_wandb, self._log_wandb  # type: ignore[attr-defined]
        comet.start, comet.__version__ = self._start_comet, "3.47.0"  # type: ignore[attr-defined]
        for module in (wandb, comet):
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _init_wandb(self, **options: Any) -> None:
        self.started["wandb"] = options

    def _log_wandb(self, data: dict[str, float], step: int, commit: bool | None) -> None:
        self.received["wandb"] += [(name, value, step) for name, value in data.items()]

    def _start_comet(self, **options: Any) -> "FakeServices":
        self.started["comet_ml"] = options
        return self

    def __internal_api__log_metric__(self, name: str, value: float, step: int) -> None:
        self.received["comet_ml"].append((name, value, step))


@pytest.mark.usefixtures("process_group")
def test_weights_and_biases_and_comet_get_every_scalar_once_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = FakeServices(monkeypatch)
    config = {
        "tensorboard": {"enabled": False},
        "wandb": {"enabled": True, "project": "doge", "team": "us"},
        "comet": {"enabled": True, "project": "doge", "api_key": "K"},
    }
    monitor = open_monitor(monitor_settings(config, tmp_path), 0, tmp_path)
    expected = []
    for step in (*range(1, 5), 10, 150):
        values = {"loss": 3.0 - step / 8, "loss/web": 2.5, "applied": True, "score/web": None, "gram": [[1.0]]}
        write_scalars(monitor, {"step": step, **values}, step)
        expected += [("loss", 3.0 - step / 8, step), ("loss/web", 2.5, step), ("applied", 1.0, step)]
    assert services.received == {"wandb": expected, "comet_ml": expected}
    assert services.started["wandb"] == {"project": "doge", "group": None, "entity": "us"}
    assert (services.started["comet_ml"]["project"], services.started["comet_ml"]["api_key"]) == ("doge", "K")
