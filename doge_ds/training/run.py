"""A run under way: its steps, metrics, progress line, warnings, and whether it was asked to stop."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

from doge_ds.config_sections import TrainingConfig
from doge_ds.errors import SaveError
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.health import Health
from doge_ds.training.metrics_file import MetricsFile
from doge_ds.training.monitor import open_monitor, write_scalars
from doge_ds.training.run_directory import RunDirectory
from doge_ds.training.throughput import Throughput, format_rates
from doge_ds.training.time_limit import TimeLimit
from doge_ds.training.watchdog import Watchdog

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Where nobody watches, in a log file, the progress line is a new line, and not more often than this.
SECONDS_BETWEEN_LINES = 10.0


class Run:
    """Which steps are left, what is written and shown of each, and when to stop before the end."""

    def __init__(
        self,
        directory: RunDirectory,
        first_step: int,
        training: TrainingConfig,
        monitors: Mapping[str, Any],
        throughput: Throughput,
        watchdog: Watchdog,
        time_limit: float | None = None,
    ) -> None:
        """Take over metrics.jsonl up to `first_step` and catch SIGTERM, SIGINT and SIGUSR1.

        Args:
            directory: created already.
            first_step: steps that the checkpoint has behind it.
            training: steps, log_every, eval_every and on_failed_save.
            monitors: as `monitor_settings` returns them.
            throughput: of this run's model and ranks.
            watchdog: of this rank; rank 0 writes files and the progress line.
            time_limit: seconds after which the process shall have saved and ended; None for no limit.
        """
        self.first_step = first_step
        self._training = training
        self._caught: signal.Signals | None = None
        self._time_limit = TimeLimit(time_limit)
        self._saving = 0.0
        self._watchdog = watchdog
        self._is_speaker = is_speaker = watchdog.rank == 0
        self._throughput = throughput
        self._warnings: list[str] = []
        self._unwritten: str | None = None
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
            self._metrics = MetricsFile(directory.path / "metrics.jsonl", first_step)
        self._handlers = {number: signal.signal(number, self._request_stop) for number in STOP_SIGNALS}

    @property
    def stop_requested(self) -> bool:
        """Whether this rank was told to stop, by a signal or by its clock; all ranks agree in the step's reduction."""
        return self._caught is not None or self._time_limit.is_near()

    def steps(self) -> Iterator[int]:
        """The steps that are left, 0-based, with the progress line around them."""
        self._throughput.restart()
        with self._bar:
            for step in range(self.first_step, self._training.steps):
                self._watchdog.mark(f"in step {step + 1}")
                yield step
                self._bar.update()
                self._time_limit.step_ended(self._saving)
                self._saving = 0.0
        for number, handler in self._handlers.items():  # nobody looks at stop_requested any more
            signal.signal(number, handler)

    def is_logged(self, step: int) -> bool:
        """Whether metrics.jsonl gets a line for this 0-based step: also where there is something to warn of."""
        is_last = step + 1 == self._training.steps
        is_due = (step + 1) % self._training.log_every == 0
        return is_due or is_last or self._is_evaluated(step) or bool(self._warnings)

    def _is_evaluated(self, step: int) -> bool:
        every = self._training.eval_every
        return every is not None and ((step + 1) % every == 0 or step + 1 == self._training.steps)

    def evaluate(self, step: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `measure` finds (collective) after a 0-based step of `eval_every`; nothing after others.

        Its time counts in `seconds` and not in `tokens_per_second`.
        """
        if not self._is_evaluated(step):
            return {}
        self._watchdog.mark(f"in the evaluation after step {step + 1}")
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
        self._throughput.add(tokens)
        rates = self._throughput.rates()
        if self._is_speaker:
            self._show(step, ", ".join(filter(None, [f"loss {values['loss']:.3f}", format_rates(rates), shown])))
        if not self.is_logged(step):
            return
        warnings = {"warnings": self._warnings} if self._warnings else {}
        self._warnings = []
        if not self._is_speaker:
            return
        line = {
            "step": step + 1,
            **values,
            **warnings,
            "tokens": tokens_so_far,
            **{name: float(f"{rate:.6g}") for name, rate in rates.items()},
            "seconds": round(self._metrics.seconds + time.monotonic() - self._started, 3),
        }
        self._write(line)
        self._throughput.restart()

    def _write(self, line: Mapping[str, Any]) -> None:
        """A line into metrics.jsonl and the monitors; a full disk is told of once, and does not end the run."""
        problem = self._metrics.append(line)
        try:
            write_scalars(self._monitor, line, line["step"])
        except OSError as error:
            problem = problem or str(error.strerror)
        if problem and not self._unwritten:
            text = f"warning: metrics cannot be written ({problem}); those of metrics.jsonl are kept until they can be"
            tqdm.write(text, file=sys.stderr)
        self._unwritten = problem

    def ends_after(
        self, step: int, stop: bool, health: Health, checkpoints: Checkpoints, save: Callable[[str | None], None]
    ) -> bool:
        """Save after a 0-based step where that is due (collective); whether the run ends here before its last step.

        Args:
            step: that is over and logged.
            stop: the ranks agreed to stop.
            health: what it was like; after a bad step only the last save of a process is made.
            checkpoints: the run's.
            save: saves one; given what speaks against it on this rank: metrics that are not on disk, without which a
                continued run would miss lines.

        Raises:
            DivergedError: too many steps in a row were bad.
            SaveError: a checkpoint could not be written, and nothing would make up for it, or
                `training.on_failed_save` says to stop.
        """
        health.refuse_to_go_on(checkpoints.describe)
        is_last = step + 1 == self._training.steps
        if stop or is_last or (checkpoints.is_due(step) and health.is_good):
            self._watchdog.mark(f"in the checkpoint after step {step + 1}")
            self._save(save, must=stop or is_last)
        if stop and not is_last:
            self._report_stop(step)
        return stop and not is_last

    def _save(self, save: Callable[[str | None], None], must: bool) -> None:
        began = time.monotonic()
        try:
            save(self._metrics.sync() if self._is_speaker else None)
        except SaveError as error:
            if must or self._training.on_failed_save == "stop":
                raise
            if self._is_speaker:
                tqdm.write(f"warning: {error}; training goes on, and saves again when it is due", file=sys.stderr)
        self._saving = time.monotonic() - began

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

    def warn(self, warnings: Sequence[str]) -> None:
        """Print each as one line, and write them with this step's metrics, which are logged for it."""
        self._warnings += warnings
        for warning in warnings if self._is_speaker else ():
            tqdm.write(f"warning: {warning}", file=sys.stderr)

    def _report_stop(self, step: int) -> None:
        """Say that the run ends before its end, after this 0-based step, why, and that nothing is lost."""
        reason = self._caught.name if self._caught else "time limit" if self._time_limit.is_near() else "another rank"
        done = f"{step + 1} of {self._training.steps}"
        if self._is_speaker:
            text = f"stopped and saved after step {done} ({reason}); the same command continues"
            print(text, file=sys.stderr, flush=True)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        """Finish the step, save, and end with status 75; a second Ctrl-C ends at once."""
        if self._caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._caught = signal.Signals(number)
