"""Whether training goes well: steps whose loss or gradient is no number, and losses that jump.

DeepSpeed leaves out a step whose gradient is NaN or infinite, so the model stays what it was. One such step is an
accident; many in a row mean that nothing is learned any more, and the run ends.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from doge_ds.errors import DivergedError

# A loss is a spike where it lies this many deviations above the mean of the steps before it, and this many nats: in
# a smooth stretch a rise that nobody would see is many deviations.
SPIKE_DEVIATIONS, SPIKE_NATS = 6.0, 0.1
STEPS_BEFORE = 100  # that are remembered, and of which at least this part must be there
LEAST_STEPS_BEFORE = 20


class Health:
    """What was seen of the last steps."""

    def __init__(self, stop_after: int, has_loss_scale: bool) -> None:
        """Args: bad steps in a row that end the run; whether fp16's loss scale makes left-out steps normal."""
        self._stop_after = stop_after
        self._has_loss_scale = has_loss_scale
        self._losses: deque[float] = deque(maxlen=STEPS_BEFORE)
        self._bad_steps: list[int] = []
        self._read = ""

    def observe(self, step: int, loss: float, was_applied: bool, read: Callable[[], str]) -> list[str]:
        """Take in a step that is over; a warning for each thing that stands out, as one line.

        Args:
            step: 0-based.
            loss: of the step, the same on all ranks.
            was_applied: whether the optimizer took it.
            read: which samples it read, in words.
        """
        is_number = math.isfinite(loss)
        if not is_number or not (was_applied or self._has_loss_scale):
            self._bad_steps.append(step)
            self._read = read()
            what = "gradient" if is_number else "loss"
            text = f"the {what} of step {step + 1} is NaN or infinite, so the step was left out"
            return [f"{text}; its samples: {self._read}"]
        self._bad_steps.clear()
        return self._spike(step, loss)

    @property
    def is_good(self) -> bool:
        """Whether the last step was: what is saved after a bad one may be as bad."""
        return not self._bad_steps

    def refuse_to_go_on(self, describe_checkpoint: Callable[[], str]) -> None:
        """Raises DivergedError after too many bad steps in a row, naming the last good checkpoint."""
        if len(self._bad_steps) < self._stop_after:
            return
        first, last = self._bad_steps[0] + 1, self._bad_steps[-1] + 1
        steps = f"the last step, {last}," if first == last else f"all steps from {first} to {last}"
        read = f"samples of the last: {self._read}"
        raise DivergedError(
            steps,
            f"had a loss or gradient that is NaN or infinite; {read}; {describe_checkpoint()}",
            "look for damaged text there, or take a lower training.learning_rate and another --output",
        )

    def _spike(self, step: int, loss: float) -> list[str]:
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < LEAST_STEPS_BEFORE:
            return []
        mean = sum(before) / len(before)
        deviation = math.sqrt(sum((earlier - mean) ** 2 for earlier in before) / len(before))  # statistics' takes 80 us
        if loss < mean + max(SPIKE_DEVIATIONS * deviation, SPIKE_NATS):
            return []
        return [f"loss spike at step {step + 1}: {loss:.4g} after a mean of {mean:.4g} in the {len(before)} before"]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, so that a continued run says what an undisturbed one would."""
        return {"losses": list(self._losses), "bad_steps": list(self._bad_steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's."""
        self._losses = deque(state["losses"], maxlen=STEPS_BEFORE)
        self._bad_steps = list(state["bad_steps"])
