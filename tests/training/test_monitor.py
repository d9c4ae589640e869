"""DeepSpeed's monitors: where they write, what they are given, and what is refused."""

import csv
import json
from pathlib import Path

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
    shared = {"enabled": True, "output_path": "/logs"}  # every run its own folder there
    assert monitor_settings({"tensorboard": shared}, tmp_path)["tensorboard"]["job_name"] == tmp_path.name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tensorboard": {"enabled": "perhaps"}}, "deepspeed.tensorboard.enabled: Input should be a valid boolean"),
        ({"csv_monitor": {"enable": True}}, "deepspeed.csv_monitor.enable: Extra inputs are not permitted"),
        ({"wandb": {"enabled": True}}, "deepspeed.wandb: needs the package wandb; pip install wandb"),
        ({"comet": {"enabled": True}}, "deepspeed.comet: needs the package comet_ml; pip install comet_ml"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(config: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        monitor_settings(config, tmp_path)
    assert message in str(caught.value)


@pytest.mark.usefixtures("process_group")
def test_scalars_reach_tensorboard_and_csv_files_once_a_step_also_after_a_restart(tmp_path: Path) -> None:
    settings = monitor_settings({"csv_monitor": {"enabled": True}}, tmp_path)
    lines = [
        {"step": step, "loss": 3.0 - step / 8, "loss/web": 2.5, "applied": True, "gram": [[1.0]], "score/web": None}
        for step in range(1, 9)
    ]
    for first_step, last_step in ((0, 6), (4, 8)):  # killed after step 6; the checkpoint was of step 4
        monitor = open_monitor(settings, first_step, tmp_path)
        for line in lines[first_step:last_step]:
            write_scalars(monitor, line, line["step"])
        write_scalars(monitor, {"step": last_step, "loss/bad": float("nan")}, last_step)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "loss/web", "applied"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert [event.value for event in events.Scalars("applied")] == [1.0] * 8
    with (tmp_path / "csv_monitor/loss.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["step", "loss"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 9))
    assert json.loads(rows[8][1]) == lines[7]["loss"]
