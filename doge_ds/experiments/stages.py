"""One stage of a comparison: what decides its result, where that is, and what starts it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from doge_ds.config import ProxyConfig, RunConfig
from doge_ds.config_sections import METHODS
from doge_ds.errors import ConfigError
from doge_ds.training.monitor import MONITORS

ROOT = Path(__file__).resolve().parents[2]

Kind = Literal["reference", "proxy", "base", "eval"]
KINDS: tuple[Kind, ...] = ("reference", "proxy", "base", "eval")
PROGRAMS: dict[Kind, str] = {
    "reference": "doge_ds/train_base.py",
    "proxy": "doge_ds/train_proxy.py",
    "base": "doge_ds/train_base.py",
    "eval": "eval/run.py",
}
# What the programs leave when they are finished.
RESULTS: dict[Kind, str] = {
    "reference": "hf/config.json",
    "proxy": "mixture.json",
    "base": "hf/config.json",
    "eval": "results.json",
}

# Keys that no result depends on; the store's content is known by its fingerprint, the mixture by its weights.
FREE_KEYS = (
    "data.max_epochs",
    "data.path",
    "mixture",
    "training.checkpoint_every",
    "training.gradient_checkpointing",
    "training.keep_checkpoints",
    "training.keep_universal",
    "training.micro_batch_size",
    "training.on_failed_save",
    "training.peak_tflops",
    "training.rank_timeout",
    "training.stop_after_bad_steps",
    *(f"deepspeed.{name}" for name in MONITORS),
)
_DIGITS = 10  # of an identity, in a directory's name


@dataclass(frozen=True)
class ScheduleOf:
    """A schedule that is made of a proxy's trajectory when the base that trains on it is started."""

    run: Path
    parts: int
    base_steps: int


@dataclass(frozen=True)
class Stage:
    """One run or evaluation.

    Attributes:
        label: the mixture that it was first asked for.
        identity: sha256 over all that decides its result; stages with the same are one stage.
        directory: RUN, or where the evaluation's results are.
        arguments: of the program, without those that say where the output goes.
        after: identities of the stages whose results it reads.
        config: resolved run configuration, which is written beside the directory: what is running does not change
            where the user edits a file.
        schedule: of a base that trains on one.
        weights: what a stage trains on where the user's file says so, as pairs of a step and weights from it on: that
            file may be another when the stage starts.
        flops: floating-point operations; None where they cannot be counted.
    """

    kind: Kind
    label: str
    seed: int
    identity: str
    directory: Path
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    schedule: ScheduleOf | None = None
    weights: Sequence[Any] | None = None
    flops: float | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind} of {self.label}, seed {self.seed}"

    @property
    def result(self) -> Path:
        """Whose presence says that the stage is finished."""
        return self.directory / RESULTS[self.kind]

    @property
    def is_finished(self) -> bool:
        return self.result.exists()

    @property
    def log(self) -> Path:
        """What the program prints."""
        return beside(self.directory, ".log")

    @property
    def words(self) -> list[str]:
        """Program and arguments; the launcher comes before them."""
        program = ROOT / PROGRAMS[self.kind]
        shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
        output = self.result if self.kind == "eval" else self.directory
        config = ["--config", str(beside(self.directory, ".json"))] if self.config is not None else []
        mixture = ["--mixture", str(self.schedule_file)] if self.schedule or self.weights else []
        return [str(shown), *config, *self.arguments, *mixture, "--output", str(output)]

    @property
    def schedule_file(self) -> Path:
        """Of a stage that has a schedule, or weights from a file."""
        return beside(self.directory, ".schedule.json")


def beside(directory: Path, suffix: str) -> Path:
    """A file beside a stage's directory; labels may have dots, so this is not `with_suffix`."""
    return directory.with_name(directory.name + suffix)


def identity_of(kind: Kind, config: RunConfig | None, **facts: Any) -> str:
    """sha256 over program, configuration and facts: 64 hex digits.

    Args:
        config: the resolved run configuration of a training program.
        facts: as JSON: the store's, the mixture's weights, identities of stages before, an evaluation's options.
    """
    values = deciding_values(config) if config else {}
    text = json.dumps({"program": PROGRAMS[kind], "config": values, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def deciding_values(config: RunConfig) -> dict[str, Any]:
    """A resolved configuration without what no result depends on."""
    values = config.model_dump(mode="json")
    if isinstance(config, ProxyConfig):
        for name in METHODS.keys() - {config.method}:
            del values[name]
        if config.reference is not None:
            values[config.method]["reference"] = "known by its content"
    for key in FREE_KEYS:
        *sections, last = key.split(".")
        inner = values
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(last, None)
    return values


def place_of(folder: Path, kind: Kind, label: str, seed: int, identity: str) -> Path:
    """The stage's directory: the one that is there already under any label, a finished one first, or a new one."""
    found = [path for path in sorted(folder.glob(f"stages/*-{identity[:_DIGITS]}")) if path.is_dir()]
    finished = [path for path in found if (path / RESULTS[kind]).exists()]
    slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", label)[:60].strip("-") or "mixture"
    return (finished or found or [folder / "stages" / f"{kind}-{slug}-s{seed}-{identity[:_DIGITS]}"])[0]


def check_programs(stages: Sequence[Stage]) -> None:
    """Raises ConfigError where a program is missing: an installed package alone has no eval/run.py."""
    for program in dict.fromkeys(PROGRAMS[stage.kind] for stage in stages):
        if not (ROOT / program).is_file():
            raise ConfigError(str(ROOT / program), "is missing", "run doge-ds compare from a clone of the project")
