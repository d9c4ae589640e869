"""One run's directory: what is on disk, and whether the run that is asked for may continue it.

RUN/config.json      resolved run configuration; can be given to --config again
RUN/run.json         what else makes the run what it is: program, ranks, store, tokenizer, mixture
RUN/starts.jsonl     one object a start: when, on which machine and job, after which step, by which command
RUN/submitted/       of a Slurm job: its scripts and the configuration, as they were when it started
RUN/metrics.jsonl    one object a logged step; RUN/tensorboard/ has its numbers too
RUN/checkpoints/     see training/checkpoint_files.py
RUN/mixture.json     a finished proxy; RUN/hf/ a finished base model
"""

import glob
import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from doge_ds.config import RunConfig
from doge_ds.config_sections import REFERENCE_METHODS
from doge_ds.errors import RunError, first_line
from doge_ds.json_files import parse_json, write_json
from doge_ds.training.monitor import MONITORS

LOCK = ".lock"
SECONDS_FOR_THE_LOCK = 120.0

Resume = Literal["auto", "never"]

# Keys and sections that may change between a run and its continuation: they do not touch what is computed. The store
# may have been moved; its fingerprint is compared instead.
FREE_KEYS = (
    "config.data.max_epochs",
    "config.data.path",
    "config.training.checkpoint_every",
    "config.training.keep_checkpoints",
    "config.training.keep_universal",
    "config.training.on_failed_save",
    "config.training.stop_after_bad_steps",
    "config.training.rank_timeout",
    "config.training.micro_batch_size",
    "config.training.log_every",
    "config.training.eval_every",
    "config.training.eval_windows",
    "config.training.gradient_checkpointing",
    "config.training.peak_tflops",
    "config.training.export_dtype",
    "config.mixture",  # what is trained on stands in run.json
    # So does what tells a reference model from another.
    *(f"config.{name}.reference" for name in REFERENCE_METHODS),
    "mixture_from",
    "ranks",  # a checkpoint is converted for another number of them
    *(f"config.deepspeed.{name}" for name in MONITORS),
)
# What a base run trains on; `--change_mixture` may change it.
MIXTURE_KEYS = ("mixture", "mixture_given", "schedule")
# How many sequences a step reads; `--change_batch` may change it.
BATCH_KEYS = ("config.training.global_batch_size", "config.training.sequences_per_domain", "batches")


def refuse_pattern(run: Path) -> None:
    """Raises RunError where DeepSpeed would take the path for a pattern when it looks for a checkpoint's files, and
    find none."""
    if glob.has_magic(str(run)):
        problem = "has [, * or ? in its path, and DeepSpeed would not find its checkpoints there"
        raise RunError(str(run), problem, "name another --output, or move the run")


class RunDirectory:
    """What is on disk, and whether it may be continued. Looking changes nothing; `create` is for rank 0."""

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        facts: Mapping[str, Any],
        result: str,
        resume: Resume,
        changes_mixture: bool = False,
        changes_batch: bool = False,
    ) -> None:
        """Look at the directory.

        Args:
            path: RUN.
            config: resolved run configuration.
            facts: what else makes the run what it is, as JSON.
            result: name of the file or folder whose presence says that the run is finished.
            resume: "auto" continues an unfinished run; "never" refuses one.
            changes_mixture: this start changes the mixture of the run that is there.
            changes_batch: this start changes how many sequences its steps read.

        Raises:
            RunError: the directory holds something else, another run (what differs is named), or a run and resume is
                "never".
        """
        self.path = path
        self._kind = type(config)
        self._config = config.model_dump(mode="json")
        self._facts = json.loads(json.dumps(facts))
        self.result = path / result
        self.checkpoints = path / "checkpoints"
        self._may_change = (
            *FREE_KEYS,
            *(MIXTURE_KEYS if changes_mixture else []),
            *(BATCH_KEYS if changes_batch else []),
        )
        refuse_pattern(path)
        place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not place.is_dir():
            raise RunError(str(place), "is a file", "name another --output")
        if not os.access(place, os.W_OK):
            raise RunError(str(place), "cannot be written", "name another --output, or ask for the right to")
        if path.is_dir() and any(path.iterdir()):
            self._refuse_other_runs(resume)

    @property
    def is_finished(self) -> bool:
        return self.result.exists()

    def lock(self) -> RunError | None:
        """Keep other processes from writing this run until this one ends (rank 0); what is wrong, or None.

        A process that has just been killed may hold it for a moment, on a network file system for a minute or two.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / LOCK)
        try:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                print(f"{self.path} is being written by another process: waits", file=sys.stderr, flush=True)
                self._lock.acquire(timeout=SECONDS_FOR_THE_LOCK, poll_interval=0.2)
        except Timeout:
            problem = "is being written by another process"
            remedy = f"wait for its end, or end it; `fuser {self.path / LOCK}` on its node names it"
            return RunError(str(self.path), problem, remedy)
        except (OSError, NotImplementedError) as error:  # a file system without locks; older filelocks have the second
            text = f"warning: {self.path}: its file system has no locks ({first_line(error)}); start it only once"
            print(text, file=sys.stderr, flush=True)
        return None

    def create(self, first_step: int = 0, config: Path | None = None) -> None:
        """Make the directory with config.json and run.json, and record this start (rank 0).

        Args:
            first_step: steps that the run has behind it.
            config: the file that `--config` names; copied into a Slurm job's RUN/submitted with the job's scripts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", self._facts)
        write_json(self.path / "config.json", self._config)
        start = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "restarts_of_job": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            "ranks": self._facts.get("ranks"),
            "after_step": first_step,
            "command": sys.argv,
            "versions": {name: version(name) for name in ("doge_ds", "deepspeed", "torch", "transformers")},
        }
        with (self.path / "starts.jsonl").open("a") as stream:
            stream.write(json.dumps(start) + "\n")
        if script := os.environ.get("DOGE_DS_SCRIPT"):
            self._keep_what_was_submitted(Path(script), config)

    def _keep_what_was_submitted(self, script: Path, config: Path | None) -> None:
        """Copies, so that a later edit does not hide what a job of this run did."""
        folder = self.path / "submitted"
        folder.mkdir(exist_ok=True)
        scripts = [script, script.with_name("launch.sh"), script.with_name("site.sh")]
        for file in (*scripts, *([config] if config else [])):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)

    def _as_read_today(self, config: dict[str, Any]) -> dict[str, Any]:
        """A run that an older version began goes on: keys that it did not know have their defaults."""
        try:
            return self._kind.model_validate(config).model_dump(mode="json")
        except ValidationError:
            return config

    def _refuse_other_runs(self, resume: Resume) -> None:
        files = [self.path / "run.json", self.path / "config.json"]
        if not all(file.is_file() for file in files):
            if {file.name for file in self.path.iterdir()} <= {LOCK, "run.json", "run.json.tmp", "config.json.tmp"}:
                return  # killed while it was created: nothing is lost
            raise RunError(str(self.path), "exists and is no run of ours", "name another --output")
        if resume == "never":
            raise RunError(str(self.path), "holds a run already", "name another --output, or leave --resume at auto")
        try:
            facts, config = (parse_json(file.read_bytes()) for file in files)
            if batches := facts.get("batches"):  # config.json is written after it
                _set_batch(config, batches[-1]["sequences"])
            there = _flatten({**facts, "config": self._as_read_today(config)})
        except (ValueError, TypeError, LookupError, AttributeError):
            raise RunError(f"{self.path}: run.json or config.json", "is damaged", "name another --output") from None
        here = _flatten({**self._facts, "config": self._config})
        missing = object()
        free = list(self._may_change)
        if facts.get("schedule") and facts["schedule"] == self._facts.get("schedule"):
            free.append("mixture")  # its mean, which changes with the batch
        keys = [
            key
            for key in sorted(set(there) | set(here))
            if there.get(key, missing) != here.get(key, missing) and not _is_below(key, free)
        ]
        if any(_is_below(key, BATCH_KEYS[:2]) for key in keys):
            keys = [key for key in keys if not _is_below(key, BATCH_KEYS[2:])]  # which say the same, at more length
        if keys:
            differing = [
                f"{key} is {there.get(key, 'not set')} there and {here.get(key, 'not set')} here" for key in keys
            ]
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            remedy = "name another --output"
            if not self.is_finished and (change := _change_that_is_possible(keys)):
                remedy += f", or change {change}"
            raise RunError(str(self.path), f"holds another run: {', '.join(differing[:3])}{more}", remedy)


def _set_batch(config: dict[str, Any], sequences: int) -> None:
    """Into a base's or a proxy's configuration."""
    training = config["training"]
    training["global_batch_size" if "global_batch_size" in training else "sequences_per_domain"] = sequences


def _change_that_is_possible(keys: Sequence[str]) -> str | None:
    """What would let a run go on with these keys changed, in words; None where nothing would."""
    if not all(_is_below(key, (*MIXTURE_KEYS, *BATCH_KEYS[:2])) for key in keys):
        return None
    changes = {"mixture": MIXTURE_KEYS, "batch": BATCH_KEYS}
    found = [name for name, names in changes.items() if any(_is_below(key, names) for key in keys)]
    what, options = (" and ".join(prefix + name for name in found) for prefix in ("the ", "--change_"))
    return f"{what} from the latest checkpoint on with {options}"


def _is_below(key: str, names: Sequence[str]) -> bool:
    """Whether a flattened key is one of these, or lies in one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; [{"b": 1}] -> {"0.b": 1}."""
    if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict) or not values:
        return {prefix.rstrip("."): values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
