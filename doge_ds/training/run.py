"""One run's directory, metrics, progress line and stop signals.

RUN/config.json      resolved run configuration; can be given to --config again
RUN/run.json         what else makes the run what it is: program, ranks, store, tokenizer, mixture
RUN/metrics.jsonl    one object a logged step; RUN/tensorboard/ has its numbers too
RUN/checkpoints/     DeepSpeed's
RUN/mixture.json     a finished proxy; RUN/hf/ a finished base model
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from tqdm import tqdm

from doge_ds.config import RunConfig, TrainingConfig
from doge_ds.errors import RunError
from doge_ds.json_files import without_nan, write_json
from doge_ds.training.monitor import MONITORS, open_monitor, write_scalars
from doge_ds.training.throughput import Throughput, format_rates

Resume = Literal["auto", "never"]

# Keys and sections that may change between a run and its continuation: they do not touch what is computed. The store
# may have been moved; its fingerprint is compared instead.
FREE_KEYS = (
    "config.data.path",
    "config.training.checkpoint_every",
    "config.training.keep_checkpoints",
    "config.training.log_every",
    "config.training.eval_every",
    "config.training.eval_windows",
    "config.training.gradient_checkpointing",
    "config.training.peak_tflops",
    "config.training.export_dtype",
    "config.mixture",  # what is trained on stands in run.json
    "mixture_from",
    *(f"config.deepspeed.{name}" for name in MONITORS),
)
# What a base run trains on; `--change_mixture` may change it.
MIXTURE_KEYS = ("mixture", "mixture_given", "schedule")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Where nobody watches, in a log file, the progress line is a new line, and not more often than this.
SECONDS_BETWEEN_LINES = 10.0


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
    ) -> None:
        """Look at the directory.

        Args:
            path: RUN.
            config: resolved run configuration.
            facts: what else makes the run what it is, as JSON.
            result: name of the file or folder whose presence says that the run is finished.
            resume: "auto" continues an unfinished run; "never" refuses one.
            changes_mixture: this start changes the mixture of the run that is there.

        Raises:
            RunError: the directory holds something else, another run (what differs is named), or a run and resume is
                "never".
        """
        self.path = path
        self._config = config.model_dump(mode="json")
        self._facts = json.loads(json.dumps(facts))
        self.result = path / result
        self.checkpoints = path / "checkpoints"
        self._changes_mixture = changes_mixture
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

    def create(self) -> None:
        """Make the directory with config.json and run.json (rank 0)."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", self._facts)
        write_json(self.path / "config.json", self._config)

    def _refuse_other_runs(self, resume: Resume) -> None:
        files = [self.path / "run.json", self.path / "config.json"]
        if not all(file.is_file() for file in files):
            if {file.name for file in self.path.iterdir()} <= {"run.json", "run.json.tmp", "config.json.tmp"}:
                return  # killed while it was created: nothing is lost
            raise RunError(str(self.path), "exists and is no run of ours", "name another --output")
        if resume == "never":
            raise RunError(str(self.path), "holds a run already", "name another --output, or leave --resume at auto")
        try:
            facts, config = (json.loads(file.read_text()) for file in files)
            there = _flatten({**facts, "config": config})
        except (ValueError, TypeError):
            raise RunError(f"{self.path}: run.json or config.json", "is damaged", "name another --output") from None
        here = _flatten({**self._facts, "config": self._config})
        missing = object()
        free = (*FREE_KEYS, *(["ranks"] if self.is_finished else []), *(MIXTURE_KEYS if self._changes_mixture else []))
        keys = [
            key
            for key in sorted(set(there) | set(here))
            if there.get(key, missing) != here.get(key, missing) and not _is_below(key, free)
        ]
        if keys:
            differing = [
                f"{key} is {there.get(key, 'not set')} there and {here.get(key, 'not set')} here" for key in keys
            ]
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            remedy = "name another --output"
            if not self.is_finished and all(_is_below(key, MIXTURE_KEYS) for key in keys):
                remedy += ", or change the mixture from the latest checkpoint on with --change_mixture"
            raise RunError(str(self.path), f"holds another run: {', '.join(differing[:3])}{more}", remedy)


class Run:
    """A run under way: which steps are left, its metrics and progress line, and whether it was asked to stop."""

    def __init__(
        self,
        directory: RunDirectory,
        first_step: int,
        training: TrainingConfig,
        monitors: Mapping[str, Any],
        throughput: Throughput,
        is_speaker: bool,
    ) -> None:
        """Take over metrics.jsonl up to `first_step` and catch SIGTERM, SIGINT and SIGUSR1.

        Args:
            directory: created already.
            first_step: steps that the checkpoint has behind it.
            training: steps, log_every and eval_every.
            monitors: as `monitor_settings` returns them.
            throughput: of this run's model and ranks.
            is_speaker: this is rank 0: it writes files and the progress line.
        """
        self.first_step = first_step
        self._training = training
        self.stop_requested = False
        self._is_speaker = is_speaker
        self._metrics = directory.path / "metrics.jsonl"
        self._throughput = throughput
        self._monitor = open_monitor(monitors, first_step, directory.path)
        self._started = time.monotonic()
        self._printed_at = self._started
        self._is_watched = sys.stderr.isatty()
        self._bar: tqdm[NoReturn] = tqdm(
            total=training.steps,
            initial=first_step,
            unit="step",
            disable=not (is_speaker and self._is_watched),
            dynamic_ncols=True,
            mininterval=1.0,
        )
        if is_speaker:
            if first_step:
                print(f"continues after step {first_step} of {training.steps}", file=sys.stderr, flush=True)
            self._seconds_before = _drop_lines_after(self._metrics, first_step)
        self._handlers = {number: signal.signal(number, self._request_stop) for number in STOP_SIGNALS}

    def steps(self) -> Iterator[int]:
        """The steps that are left, 0-based, with the progress line around them."""
        self._throughput.restart()
        with self._bar:
            for step in range(self.first_step, self._training.steps):
                yield step
                self._bar.update()
        for number, handler in self._handlers.items():  # nobody looks at stop_requested any more
            signal.signal(number, handler)

    def is_logged(self, step: int) -> bool:
        """Whether metrics.jsonl gets a line for this 0-based step."""
        is_last = step + 1 == self._training.steps
        return (step + 1) % self._training.log_every == 0 or is_last or self._is_evaluated(step)

    def _is_evaluated(self, step: int) -> bool:
        every = self._training.eval_every
        return every is not None and ((step + 1) % every == 0 or step + 1 == self._training.steps)

    def evaluate(self, step: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `measure` finds (collective) after a 0-based step of `eval_every`; nothing after others.

        Its time counts in `seconds` and not in `tokens_per_second`.
        """
        if not self._is_evaluated(step):
            return {}
        with self._throughput.paused():
            return measure()

    def log(self, step: int, tokens: int, tokens_so_far: int, values: Mapping[str, Any], shown: str) -> None:
        """After a step: the progress line, and on logged steps a line of metrics.jsonl and the monitors.

        Args:
            step: 0-based; written as the number of steps done.
            tokens: that this step read, targets included, over all ranks.
            tokens_so_far: that the run read up to its end.
            values: for metrics.jsonl; "loss" is on the progress line too.
            shown: the weights, for the progress line.
        """
        if not self._is_speaker:
            return
        self._throughput.add(tokens)
        rates = self._throughput.rates()
        self._show(step, ", ".join(filter(None, [f"loss {values['loss']:.3f}", format_rates(rates), shown])))
        if not self.is_logged(step):
            return
        line = {
            "step": step + 1,
            **values,
            "tokens": tokens_so_far,
            **{name: float(f"{rate:.6g}") for name, rate in rates.items()},
            "seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
        }
        with self._metrics.open("a") as stream:
            stream.write(json.dumps(without_nan(line)) + "\n")
        write_scalars(self._monitor, line, step + 1)
        self._throughput.restart()

    def _show(self, step: int, text: str) -> None:
        """The progress line: in place on a terminal, else now and then a line of its own."""
        self._bar.set_postfix_str(text, refresh=False)
        now, total = time.monotonic(), self._training.steps
        if self._is_watched or (now - self._printed_at < SECONDS_BETWEEN_LINES and step + 1 < total):
            return
        elapsed, first = now - self._started, self.first_step
        line = tqdm.format_meter(step + 1, total, elapsed, initial=first, unit="step", postfix=text)
        print(line, file=sys.stderr, flush=True)
        self._printed_at = now

    def warn(self, warnings: Sequence[str]) -> dict[str, list[str]]:
        """Print each as one line; what they add to the step's line in metrics.jsonl."""
        for warning in warnings if self._is_speaker else ():
            tqdm.write(f"warning: {warning}", file=sys.stderr)
        return {"warnings": list(warnings)} if warnings else {}

    def report_stop(self, step: int) -> None:
        """Say that the run ends before its end, after this 0-based step, and that nothing is lost."""
        if self._is_speaker:
            print(
                f"stopped and saved after step {step + 1} of {self._training.steps}; the same command continues",
                file=sys.stderr,
                flush=True,
            )

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        """Finish the step, save, and end with status 75; a second Ctrl-C ends at once."""
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_requested = True


def _drop_lines_after(metrics: Path, step: int) -> float:
    """Cut what a killed run logged beyond its last checkpoint; the seconds that the run had taken until then."""
    if not metrics.exists():
        return 0.0
    kept, seconds = [], 0.0
    for text in metrics.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # the kill came in the middle of this line
        if line["step"] <= step:
            kept.append(text + "\n")
            seconds = line["seconds"]
    temporary = metrics.with_name(metrics.name + ".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(metrics)
    return seconds


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
