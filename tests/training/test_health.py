"""Steps that are NaN, and losses that jump: what is said, what ends a run, what a continued run remembers."""

import json
import random

import pytest

from doge_ds.errors import DivergedError
from doge_ds.training.health import LEAST_STEPS_BEFORE, Health


def observe(health: Health, step: int, loss: float, was_applied: bool = True) -> list[str]:
    return health.observe(step, loss, was_applied, lambda: f"{8 * step} to {8 * step + 7}")


def noisy(count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [3.0 + draw.gauss(0, 0.1) for _ in range(count)]


def test_a_spike_is_told_once_and_noise_is_not() -> None:
    health = Health(10, has_loss_scale=False)
    losses = noisy(300)
    losses[200] = 4.5
    found = {step: told for step, loss in enumerate(losses) if (told := observe(health, step, loss))}
    assert list(found) == [200]
    assert found[200][0].startswith("loss spike at step 201: 4.5 after a mean of ")


def test_a_smooth_stretch_makes_no_small_rise_a_spike() -> None:
    health = Health(10, has_loss_scale=False)
    for step in range(50):
        assert observe(health, step, 2.0 + 1e-6 * (step % 3)) == []
    assert observe(health, 50, 2.09) == []
    assert observe(health, 51, 2.2) != []


def test_the_first_losses_are_no_spikes() -> None:
    health = Health(10, has_loss_scale=False)
    assert [observe(health, step, 1.0 if step else 50.0) for step in range(LEAST_STEPS_BEFORE)] == [[]] * 20


@pytest.mark.parametrize(("loss", "was_applied", "what"), [(float("inf"), True, "loss"), (3.0, False, "gradient")])
def test_bad_steps_in_a_row_end_the_run_and_name_samples_and_checkpoint(
    loss: float, was_applied: bool, what: str
) -> None:
    health = Health(3, has_loss_scale=False)
    for step in (0, 1):
        observe(health, step, loss, was_applied)
        health.refuse_to_go_on(lambda: "nothing")
    assert not health.is_good
    assert observe(health, 2, 3.0) == []  # a good one in between: counted anew
    assert health.is_good
    for step in (3, 4, 5):
        (told,) = observe(health, step, loss, was_applied)
    assert told == f"the {what} of step 6 is NaN or infinite, so the step was left out; its samples: 40 to 47"
    message = "all steps from 4 to 6: had a loss .*; samples of the last: 40 to 47; the last good checkpoint is X; look"
    with pytest.raises(DivergedError, match=message) as caught:
        health.refuse_to_go_on(lambda: "the last good checkpoint is X")
    assert caught.value.exit_status == 1


def test_a_loss_scale_that_is_found_is_no_bad_step() -> None:
    health = Health(1, has_loss_scale=True)
    assert observe(health, 0, 3.0, was_applied=False) == []
    health.refuse_to_go_on(lambda: "nothing")
    observe(health, 1, float("nan"), was_applied=False)
    with pytest.raises(DivergedError, match="the last step, 2,: had a loss"):
        health.refuse_to_go_on(lambda: "nothing")


def test_a_continued_run_says_what_an_undisturbed_one_says() -> None:
    losses = [*noisy(150, seed=1), 4.0, *noisy(20, seed=2), float("nan"), float("nan")]
    whole, said = Health(3, has_loss_scale=False), []
    for step, loss in enumerate(losses):
        said.append(observe(whole, step, loss))
    for cut in (5, 100, 150, 172):
        first = Health(3, has_loss_scale=False)
        for step in range(cut):
            observe(first, step, losses[step])
        second = Health(3, has_loss_scale=False)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [observe(second, step, losses[step]) for step in range(cut, len(losses))] == said[cut:]
        assert second.is_good is whole.is_good is False
