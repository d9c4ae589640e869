"""TensorBoard, Weights & Biases, Comet and CSV files, through DeepSpeed's own monitors and its own configuration.

The engine gets a configuration without them: its events count samples, ours count steps, and one axis is enough. With
no monitor configured, TensorBoard writes into RUN/tensorboard; `{"tensorboard": {"enabled": false}}` turns it off.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster
from pydantic import ValidationError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from doge_ds.errors import ConfigError

# Sections of a DeepSpeed configuration, and the package that each needs.
MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml", "csv_monitor": None}


def monitor_settings(deepspeed: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """The monitors' sections, with the run's own folder where they leave open where to write.

    Raises:
        ConfigError: a setting that DeepSpeed refuses, a package that is not installed, or a folder with another run's
            CSV files.
    """
    settings = {name: dict(deepspeed[name]) for name in MONITORS if isinstance(deepspeed.get(name), dict)}
    settings.setdefault("tensorboard", {}).setdefault("enabled", True)
    for name in ("tensorboard", "csv_monitor"):
        if name in settings and not settings[name].get("output_path"):
            settings[name] = {"job_name": name, **settings[name], "output_path": str(run)}
        elif name in settings:  # DeepSpeed's own default would be one folder for all runs
            settings[name].setdefault("job_name", run.absolute().name)
    if "comet" in settings:  # DeepSpeed counts samples there and would leave out 99 of 100 of our steps
        settings["comet"].setdefault("samples_log_interval", 1)
    try:
        get_monitor_config(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"deepspeed.{'.'.join(map(str, first['loc']))}"
        raise ConfigError(where, first["msg"], "see DeepSpeed's documentation of its monitors") from None
    for name, package in MONITORS.items():
        if package and settings.get(name, {}).get("enabled") and importlib.util.find_spec(package) is None:
            raise ConfigError(f"deepspeed.{name}", f"needs the package {package}", f"pip install {package}")
    _refuse_rows_of_another_run(settings.get("csv_monitor", {}), run)
    return settings


def _refuse_rows_of_another_run(settings: Mapping[str, Any], run: Path) -> None:
    """Rows of two runs in one file could not be told apart when one of them is continued."""
    if settings.get("enabled") and not _has_logged(run):
        folder = Path(settings["output_path"], settings["job_name"])  # DeepSpeed's log_dir
        if any(folder.glob("*.csv")):
            problem = f"{folder} holds CSV files of another run"
            raise ConfigError("deepspeed.csv_monitor", problem, "name another job_name, or remove them")


def _has_logged(run: Path) -> bool:
    """Whether the run may have rows in CSV files: a logged step goes into metrics.jsonl first."""
    return (run / "metrics.jsonl").exists()


def open_monitor(settings: Mapping[str, Any], first_step: int, run: Path) -> MonitorMaster:
    """DeepSpeed's monitors, on rank 0; needs the process group.

    Args:
        settings: as `monitor_settings` returns them.
        first_step: steps that the run has behind it. TensorBoard forgets what a killed run wrote of later ones, and CSV
            files lose it, wherever they are. Comet and Weights & Biases keep what they were sent.
        run: its directory; a run that has not logged yet has no rows to lose.
    """
    monitor = MonitorMaster(get_monitor_config(settings))
    if monitor.csv_monitor is not None and _has_logged(run):
        # DeepSpeed would write a second header into each of these in the middle of its rows.
        monitor.csv_monitor.filenames += _drop_rows_after(Path(monitor.csv_monitor.log_dir), first_step)
    if monitor.tb_monitor is not None:
        start = SessionLog(status=SessionLog.START)
        monitor.tb_monitor.summary_writer.file_writer.add_event(Event(step=first_step + 1, session_log=start))
    return monitor


def _drop_rows_after(folder: Path, step: int) -> list[str]:
    """Cut DeepSpeed's CSV files, which begin with "step,", after this step; their names without .csv.

    One without a whole header, as a kill or a full disk leaves it, is deleted.
    """
    names = []
    for file in sorted(folder.glob("*.csv")):
        header, *rows = file.read_bytes().splitlines(keepends=True) or [b""]
        if not b"step,".startswith(header[:5]):
            continue  # not DeepSpeed's
        if not header.endswith(b"\n"):
            file.unlink()
            continue
        # By step: of a step that is there twice, the later row. The last row may have been cut short.
        kept = {number: row for row in rows if (number := row.split(b",")[0]).isdigit() and row.endswith(b"\n")}
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_bytes(header + b"".join(row for number, row in kept.items() if int(number) <= step))
        temporary.replace(file)
        names.append(file.stem)
    return names


def write_scalars(monitor: MonitorMaster, values: Mapping[str, Any], step: int) -> None:
    """All finite numbers among `values` but `step` itself, true and false as 1 and 0."""
    scalars = {
        name: float(value) for name, value in values.items() if name != "step" and isinstance(value, bool | int | float)
    }
    monitor.write_events([(name, value, step) for name, value in scalars.items() if math.isfinite(value)])
