"""A rank that dies or hangs takes the others down, and is named.

Ranks wait for each other many times in a step, so one that does not come leaves all others waiting, often without a
word. Here a thread of every rank says every few seconds, through the store by which the ranks found each other, that
its process lives and in which step it is. Where a rank waits for too long, or where talking to the others fails, that
tells who is missing. `kill -USR2 PID` prints what every thread of a rank is doing.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from types import FrameType, TracebackType
from typing import Any, Self

from doge_ds.errors import DogeError, RankLostError, first_line
from doge_ds.training.launch import Ranks
from doge_ds.training.stacks import STANDARD_ERROR, print_stacks

SECONDS_BETWEEN_BEATS = 2.0
# A rank that was not heard for so long has ended, or was stopped: a thread may wait a second or two for Python's lock.
SECONDS_OF_SILENCE = 3 * SECONDS_BETWEEN_BEATS
# Code in which a rank waits for others.
COMMUNICATION = (os.path.join("torch", "distributed", ""), os.path.join("deepspeed", "comm", ""))
WORDS_OF_COMMUNICATION = ("gloo", "NCCL", "Connection", "Timed out")
RANKS_NAMED = 4


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    Attributes:
        number: rises with every beat.
        host, pid: where its process is.
        place: what it does, in words.
        waits: it waits for other ranks; None where it was not asked yet.
        left: why it ended by itself; empty for contact that it lost to others; None where it has not.
    """

    number: int
    host: str
    pid: int
    place: str
    waits: bool | None = None
    left: str | None = None


class Watchdog:
    """Watches this rank from a thread, between `with Watchdog(...)` and the end of the block."""

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        """Args: seconds without `mark` after which a rank hangs; before the first mark it may take its time."""
        self._ranks = ranks
        self._timeout = timeout
        self._beat = Beat(0, socket.gethostname(), os.getpid(), "at its start")
        self._marked_at: float | None = None
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._store = _open_store() if self._ranks.world_size > 1 else None
        self._publish()
        self._thread.start()
        return self

    @property
    def rank(self) -> int:
        """Of this process."""
        return self._ranks.rank

    def mark(self, place: str) -> None:
        """The rank goes on, and is now there ("in step 12", "in the evaluation after step 12")."""
        is_first = self._marked_at is None
        self._beat = replace(self._beat, place=place)
        self._marked_at = time.monotonic()
        if is_first:
            self._publish()  # a rank that dies before its next beat was not "at its start"
        # The last resort, where even Python's lock is held: it needs no Python.
        faulthandler.dump_traceback_later(1.5 * self._timeout + 30, exit=True, file=STANDARD_ERROR)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        is_lost = isinstance(error, Exception) and not isinstance(error, DogeError) and _is_about_others(error, trace)
        left = (
            "" if is_lost else f"ended ({type(error).__name__}: {first_line(Exception(error))})" if error else "ended"
        )
        self._publish(left=left)
        if is_lost and self._store is not None and (culprits := self._find_silent_or_gone()):
            self._linger()
            raise _lost(culprits) from error

    def _watch(self) -> None:
        """The thread: beat, and look whether the rank still moves."""
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            self._publish()
            if self._marked_at is not None and time.monotonic() - self._marked_at > self._timeout:
                self._end_all()

    def _publish(self, **changes: Any) -> None:
        with self._lock:
            self._beat = replace(self._beat, number=self._beat.number + 1, **changes)
            try:
                if self._store is not None:
                    self._store.set(_key(self._ranks.rank), json.dumps(asdict(self._beat)))
            except Exception:  # whoever keeps the store has ended: this rank will notice when it talks to others
                return

    def _end_all(self) -> None:
        """This rank stands still: find out who it is that the others wait for, say so, and end the process."""
        frame = sys._current_frames().get(self._main)
        self._publish(waits=_is_waiting(frame), place=f"{self._beat.place}, at {_innermost(frame)}")
        culprits = self._find_silent_or_gone() or self._find_those_who_do_not_wait()
        is_culprit = self._ranks.rank in culprits
        if is_culprit or not culprits or self._ranks.rank == min(set(range(self._ranks.world_size)) - culprits.keys()):
            problem = f"no step was finished for {self._timeout:.0f} seconds"
            names = _lost(culprits or {self._ranks.rank: self._beat})
            print(f"error: {problem}; {names}", file=sys.stderr, flush=True)
        if is_culprit or not culprits:
            print_stacks()
        self._publish(left="")  # what it has to say is said: others shall not take it for the silent one
        self._linger()
        os._exit(RankLostError.exit_status)

    def _linger(self) -> None:
        """The store ends with rank 0: others, who may be a few seconds behind, shall still find it."""
        if self._ranks.rank == 0 and self._ranks.world_size > 1:
            self._wait_and_beat()

    def _wait_and_beat(self) -> None:
        """Until who is silent has been silent for long enough; others who look shall see that this rank is not."""
        for _ in range(round(SECONDS_OF_SILENCE / SECONDS_BETWEEN_BEATS)):
            time.sleep(SECONDS_BETWEEN_BEATS)
            self._publish()

    def _find_silent_or_gone(self) -> dict[int, Beat]:
        """Ranks that ended with an error of their own; else those that are not heard any more."""
        before = self._read()
        self._wait_and_beat()
        beats = self._read()
        if not beats:
            return {0: replace(self._beat, place="somewhere; it keeps the store that does not answer")}
        gone = {rank: beat for rank, beat in beats.items() if beat.left}
        silent = {
            rank: beat
            for rank, beat in beats.items()
            if beat.left is None and rank != self._ranks.rank and rank in before and before[rank].number == beat.number
        }
        return gone or silent

    def _find_those_who_do_not_wait(self) -> dict[int, Beat]:
        """Of ranks that all stand still, those that do something else than wait for others."""
        beats = self._read() or {self._ranks.rank: self._beat}
        return {rank: beat for rank, beat in beats.items() if beat.waits is False}

    def _read(self) -> dict[int, Beat]:
        """The last beat of each rank; none where the store does not answer."""
        if self._store is None:
            return {self._ranks.rank: self._beat}
        try:
            keys = [key for key in map(_key, range(self._ranks.world_size)) if self._store.check([key])]
            return {int(key.rpartition("/")[2]): Beat(**json.loads(self._store.get(key))) for key in keys}
        except Exception:  # torch has several kinds of error for a store that is gone
            return {}


def _open_store() -> Any:
    """A connection of its own to the ranks' store, for the thread."""
    import torch

    store: Any = torch.distributed.distributed_c10d._get_default_store()
    return store.clone()


def _key(rank: int) -> str:
    return f"doge_ds/beat/{rank}"


def _is_waiting(frame: FrameType | None) -> bool:
    """Whether a thread is in code that talks to other ranks."""
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in COMMUNICATION):
            return True
        frame = frame.f_back
    return False


def _is_about_others(error: Exception, trace: TracebackType | None) -> bool:
    """Whether an error came out of talking to other ranks: by the code that it passed, or, where a rank waited for what
    it had begun before, by the words of gloo and NCCL."""
    while trace is not None:
        if any(part in trace.tb_frame.f_code.co_filename for part in COMMUNICATION):
            return True
        trace = trace.tb_next
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS_OF_COMMUNICATION)


def _innermost(frame: FrameType | None) -> str:
    """The file, line and function."""
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


def _lost(culprits: dict[int, Beat]) -> RankLostError:
    silent_or_stuck = ("does not answer", "does not go on")
    named = [
        f"rank {rank} (process {beat.pid} on {beat.host}) {beat.left or silent_or_stuck[beat.waits is False]}, "
        f"last seen {beat.place}"
        for rank, beat in sorted(culprits.items())[:RANKS_NAMED]
    ]
    more = [f"{len(culprits) - RANKS_NAMED} more ranks"] if len(culprits) > RANKS_NAMED else []
    remedy = "see what its node and its part of the log say; the same command continues from the last checkpoint"
    return RankLostError("the ranks", ", ".join(named + more), remedy)
