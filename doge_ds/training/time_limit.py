"""A wall-clock budget: a run that shall be over by a time saves before it."""

import re
import time

import psutil

from doge_ds.errors import ConfigError

# What ends after the last save: the process group, the monitors, the interpreter.
SECONDS_TO_END = 10.0


def read_time_limit(text: str | None) -> float | None:
    """Seconds of `H:MM:SS` or `D-H:MM:SS`, as Slurm writes them. Raises ConfigError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", text)
    if found is None:
        raise ConfigError(f"--time_limit {text}", "is no time", "write it like 11:50:00 or 1-23:50:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    limit = ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
    if not limit:
        raise ConfigError(f"--time_limit {text}", "leaves no time", "leave it out, or give more")
    return limit


class TimeLimit:
    """When to save and end, so that the run is over in time.

    What must fit in is a step and a save; each is taken to last twice as long as the longest that was seen.
    """

    def __init__(self, seconds: float | None) -> None:
        """Args: from the start of this process to its end; None for no limit."""
        self._seconds = seconds
        self._age = time.time() - psutil.Process().create_time() if seconds else 0.0
        self._created = time.monotonic()
        self._step_began = self._created
        self._longest_step = self._longest_save = 0.0

    def step_ended(self, saving: float) -> None:
        """Args: the part of the step, in seconds, that went into a checkpoint; 0 without one."""
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._step_began - saving)
        self._longest_save = max(self._longest_save, saving)
        self._step_began = now

    def is_near(self) -> bool:
        """Whether another step and a save after it might not be over in time."""
        if self._seconds is None:
            return False
        needed = 2 * (self._longest_step + self._longest_save) + SECONDS_TO_END
        return self._age + time.monotonic() - self._created + needed >= self._seconds
