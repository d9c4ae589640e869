"""Run stages as processes: those that are ready, so many at once, until all are done or a signal says stop."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from doge_ds.config import MixtureStage
from doge_ds.errors import ConfigError, DogeError
from doge_ds.experiments.stages import Stage, beside
from doge_ds.json_files import write_json
from doge_ds.mixture_schedule import ScheduleFile
from doge_ds.mixture_stages import schedule_of_run
from doge_ds.training.launch import free_port

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAVED = 75  # what a training program ends with that has saved and is not finished
LINES_OF_A_FAILURE = 12
_SECONDS_BETWEEN_LOOKS = 0.1
_PR_SET_PDEATHSIG = 1  # of prctl, Linux
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec little is safe


@dataclass(frozen=True)
class Slots:
    """How many stages run at once, and on what.

    Attributes:
        parallel: stages at once.
        ranks: of each.
        gpus: numbers of the devices that deepspeed's launcher gives to ranks; none for CPUs.
    """

    parallel: int
    ranks: int
    gpus: tuple[int, ...] = ()

    @property
    def devices(self) -> str:
        """For people."""
        used = min(len(self.gpus), self.parallel * self.ranks)
        return f"{used} GPU{'s' if used != 1 else ''}" if self.gpus else "cpu"

    def command(self, stage: Stage, slot: int) -> list[str]:
        """What starts a stage: one rank without a launcher on CPUs, else deepspeed's, on the slot's own devices."""
        if self.ranks == 1 and not self.gpus:
            return [sys.executable, *stage.words]
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--log_level", "error"]
        launcher += ["--master_port", str(free_port())]
        if self.gpus:
            devices = self.gpus[slot * self.ranks : (slot + 1) * self.ranks]
            return [*launcher, "--include", f"localhost:{','.join(map(str, devices))}", *stage.words]
        return [*launcher, "--num_accelerators", str(self.ranks), *stage.words]

    def environment(self) -> dict[str, str]:
        """The user's, with as many threads a rank as leave each a part of the cores: more would fight for them."""
        threads = max(1, (os.cpu_count() or 1) // (self.parallel * self.ranks))
        return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


@dataclass
class Outcome:
    """How it went: stages that failed, that saved and ended on somebody's signal, that wait for such; was it us?"""

    failed: list[Stage] = field(default_factory=list)
    saved: list[Stage] = field(default_factory=list)
    waiting: list[Stage] = field(default_factory=list)
    was_stopped: bool = False

    @property
    def status(self) -> int:
        """Exit status of the program."""
        if self.was_stopped:
            return SAVED
        return 1 if self.failed else SAVED if self.saved else 0


@dataclass(frozen=True)
class _Running:
    stage: Stage
    slot: int
    process: subprocess.Popen[bytes]
    began: float


class Runner:
    """The stages of one folder that are not finished.

    A stage that fails does not end the others: only what depends on it is left out. After a stop signal the stages
    that are running get SIGTERM, save and end; a second signal ends them at once.
    """

    def __init__(self, stages: Sequence[Stage], slots: Slots) -> None:
        """Args: stages: each after those that it depends on, finished ones included."""
        self._waiting = [stage for stage in stages if not stage.is_finished]
        self._done = {stage.identity for stage in stages if stage.is_finished}
        self._total = len(self._waiting)
        self._slots = slots
        self._running: list[_Running] = []
        self._signals = 0
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Run them."""
        with (
            self._signals_caught(),
            tqdm(total=self._total, unit="stage", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar,
        ):
            while self._running or (not self._signals and self._start_ready()):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for running in [running for running in self._running if running.process.poll() is not None]:
                    self._running.remove(running)
                    self._end(running)
                    bar.update()
                if not self._signals:
                    self._start_ready()
                bar.set_postfix_str(", ".join(running.stage.name for running in self._running), refresh=True)
        self._outcome.waiting = self._waiting
        self._outcome.was_stopped = self._signals > 0
        return self._outcome

    def _start_ready(self) -> bool:
        """Start what may start now; whether anything runs."""
        for stage in list(self._waiting):
            free = set(range(self._slots.parallel)) - {running.slot for running in self._running}
            if free and self._done.issuperset(stage.after):
                self._waiting.remove(stage)
                self._start(stage, min(free))
        return bool(self._running)

    def _start(self, stage: Stage, slot: int) -> None:
        command = self._slots.command(stage, slot)
        _say(f"{stage.name}:\n  {shlex.join(command)}")
        try:
            write_inputs(stage)
            process = self._launch(stage, command)
        except (DogeError, OSError) as error:  # a full disk, a launcher that is not there: the others go on
            self._outcome.failed.append(stage)
            _say(f"error: {stage.name}: cannot be started: {error}", error=True)
            return
        self._running.append(_Running(stage, slot, process, time.monotonic()))
        if self._signals:  # while it was started
            self._signal(process)

    def _launch(self, stage: Stage, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        with stage.log.open("ab") as log:
            log.write(f"\n$ {shlex.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                env=self._slots.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours to pass on, once
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def _end(self, running: _Running) -> None:
        """Note how a stage ended, and say so."""
        stage, status = running.stage, running.process.returncode
        if status == 0 and stage.is_finished:
            self._done.add(stage.identity)
            seconds = time.monotonic() - running.began
            _say(f"{stage.name}: done in {seconds:.0f} s, {len(self._waiting) + len(self._running)} left")
        elif status == SAVED or self._signals:
            self._outcome.saved.append(stage)
            _say(f"{stage.name}: {'saved, ' if status == SAVED else ''}not finished")
        else:
            self._outcome.failed.append(stage)
            _say(failure(stage, status), error=True)

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        """Tell the stages that are running: first to save and end, then to end at once."""
        self._signals += 1
        for running in self._running:
            self._signal(running.process)

    def _signal(self, process: "subprocess.Popen[bytes]") -> None:
        if process.poll() is None:
            if self._signals == 1:
                ask_to_end(process.pid)
            else:
                with suppress(ProcessLookupError):  # it has ended a moment ago
                    os.killpg(process.pid, signal.SIGKILL)


def ask_to_end(leader: int) -> None:
    """SIGTERM to a stage's ranks; its launcher ends when they have.

    The deepspeed command itself would die of a SIGTERM and leave its ranks alone, and the launcher below it would give
    them 30 seconds, which may not be enough to save. While there are no ranks yet, all processes get it.
    """
    ranks: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        ranks = [process for process in psutil.Process(leader).children(recursive=True) if _is_rank(process)]
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()
    if not ranks:
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGTERM)


def _is_rank(process: psutil.Process) -> bool:
    """Whether deepspeed's launcher has started it: it adds --local_rank."""
    try:
        return any(word.startswith("--local_rank") for word in process.cmdline())
    except psutil.Error:
        return False


def write_inputs(stage: Stage) -> None:
    """What a stage reads that no other stage leaves: its run configuration, its schedule; an evaluation's folder.

    Raises:
        DogeError: the proxy has logged too few steps for a schedule of so many parts.
    """
    stage.directory.parent.mkdir(parents=True, exist_ok=True)
    if stage.kind == "eval":
        stage.directory.mkdir(exist_ok=True)
    if stage.config is not None:
        write_json(beside(stage.directory, ".json"), stage.config)
    if stage.weights:
        parts = [MixtureStage(from_step=step, mixture=weights) for step, weights in stage.weights]
        ScheduleFile(schedule=parts).write(stage.schedule_file)
    if stage.schedule:
        wanted = stage.schedule
        schedule_of_run(wanted.run, wanted.parts, wanted.base_steps).write(stage.schedule_file)


def failure(stage: Stage, status: int) -> str:
    """What to tell of a stage that failed: its status, the last lines that it printed, and where all of them are."""
    lines = stage.log.read_text(encoding="utf-8", errors="replace").splitlines()
    shown = "\n".join(f"  {line}" for line in lines[-LINES_OF_A_FAILURE:])
    ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    if status == 0:
        ended = f"ended without {stage.result}: move {stage.result.parent} away, and the same command makes it again"
    return f"error: {stage.name}: {ended}; its last lines, all are in {stage.log}:\n{shown}"


def _say(text: str, error: bool = False) -> None:
    """Print above the progress bar, at once."""
    stream = sys.stderr if error else sys.stdout
    tqdm.write(text, file=stream)
    stream.flush()


def _end_with_parent() -> None:
    """In a stage's process, before its program: where we are killed by SIGKILL, it gets SIGTERM, and saves."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def gpus_of_this_machine(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Numbers of the GPUs that torch sees, as deepspeed's --include has them; none where DeepSpeed shall use CPUs.

    Raises ConfigError where they are named otherwise than by numbers, which --include does not know.
    """
    if environment.get("DS_ACCELERATOR") == "cpu":
        return ()
    import torch

    count = torch.cuda.device_count()
    # With --include deepspeed looks past this variable, so its numbers are said there.
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not count or visible is None:
        return tuple(range(count))
    words = [word.strip() for word in visible.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible}", "names GPUs otherwise than by number", "write their numbers"
        )
    return tuple(map(int, words))[:count]
