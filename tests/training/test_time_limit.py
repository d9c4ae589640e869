"""A wall-clock budget: how it is written, and that a step and a save still fit in when it says so."""

import time

import pytest

from doge_ds.errors import ConfigError
from doge_ds.training.time_limit import SECONDS_TO_END, TimeLimit, read_time_limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00:30", 30), ("11:50:00", 42_600), ("1-23:50:01", 172_201), ("100:00:00", 360_000), (None, None)],
)
def test_times_as_slurm_writes_them(text: str | None, seconds: float | None) -> None:
    assert read_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "10:00", "1:60:00", "-1:00:00", "1-2", "0:00:00", "1:00:00\n", "x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--time_limit"):
        read_time_limit(text)


def test_it_is_near_while_a_step_and_a_save_twice_as_long_as_the_longest_still_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limit = TimeLimit(600.0)
    age = limit._age  # this process has run for a while
    assert age > 0
    limit = TimeLimit(600.0 + age)
    for step, saving in ((20.0, 0.0), (50.0, 30.0), (15.0, 0.0)):
        assert not limit.is_near()
        now[0] += step
        limit.step_ended(saving)
    # The longest step took 20 seconds, the longest save 30.
    now[0] = 1000.0 + 600.0 - 2 * (20 + 30) - SECONDS_TO_END - 5
    assert not limit.is_near()
    now[0] += 10
    assert limit.is_near()


def test_without_a_limit_it_is_never_near() -> None:
    limit = TimeLimit(None)
    limit.step_ended(1e9)
    assert not limit.is_near()
