"""DoReMi's step against the plain reference, on excess losses that are never all equal."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from doge_ds.config_sections import DoremiConfig
from doge_ds.reweight.doremi import DoremiWeights
from tests import reference_doremi as reference
from tests.measured import Measured

DOMAINS = ["a", "b", "c", "d"]


def measured(excess: list[float], gram: torch.Tensor | None = None) -> Measured:
    matrix = torch.diag(torch.arange(1.0, len(excess) + 1, dtype=torch.float64)) if gram is None else gram
    return Measured(matrix, DOMAINS[: len(excess)], excess_losses=torch.tensor(excess, dtype=torch.float64))


@given(
    st.lists(st.lists(st.floats(0, 12), min_size=4, max_size=4), min_size=1, max_size=30),
    st.floats(0.01, 2),
    st.floats(0, 0.2),
)
def test_steps_equal_the_reference_and_the_mean_is_that_of_the_new_weights(
    excesses: list[list[float]], step_size: float, smoothing: float
) -> None:
    weights = DoremiWeights(DOMAINS, DoremiConfig(step_size=step_size, smoothing=smoothing))
    expected, history = [0.25] * 4, []
    for excess in excesses:
        proposal = weights.propose(measured(excess), learning_rate=math.nan)
        weights.accept(proposal)
        expected = reference.new_weights(expected, excess, step_size, smoothing)
        history.append(expected)
        assert proposal.weights.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert proposal.coefficients.tolist() == proposal.weights.tolist()  # the new ones train the model
        assert proposal.scores.tolist() == excess
    wanted = [sum(column) / len(history) for column in zip(*history, strict=True)]
    assert list(weights.mean().values()) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_the_defaults_are_the_papers_and_weights_go_where_the_excess_is() -> None:
    weights = DoremiWeights(DOMAINS[:2], DoremiConfig())
    weights.accept(weights.propose(measured([1.0, 0.0]), 0.1))
    share = math.e / (1 + math.e)
    assert weights.current()["a"] == pytest.approx(0.999 * share + 0.0005, rel=1e-12)


def test_no_excess_anywhere_draws_the_weights_towards_uniform_only() -> None:
    weights = DoremiWeights(DOMAINS[:2], DoremiConfig(smoothing=0.5))
    weights.accept(weights.propose(measured([2.0, 0.0]), 0.1))
    before = weights.current()["a"]
    weights.accept(weights.propose(measured([0.0, 0.0]), 0.1))
    assert weights.current()["a"] - 0.5 == pytest.approx((before - 0.5) / 2, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["excess", "gradient"])
def test_what_is_not_finite_changes_nothing_and_spoils_the_gradient(bad: float, where: str) -> None:
    weights = DoremiWeights(DOMAINS[:2], DoremiConfig())
    gram = torch.diag(torch.tensor([1.0, bad if where == "gradient" else 2.0], dtype=torch.float64))
    proposal = weights.propose(measured([bad if where == "excess" else 0.3, 0.1], gram), 0.1)
    assert proposal.coefficients.isnan().all()
    assert proposal.weights.tolist() == [0.5, 0.5]


def test_a_step_without_a_reference_or_without_a_domain_is_refused() -> None:
    weights = DoremiWeights(DOMAINS[:2], DoremiConfig())
    with pytest.raises(ValueError, match="no step of DoReMi"):
        weights.propose(Measured(torch.eye(2, dtype=torch.float64), DOMAINS[:2]), 0.1)
    with pytest.raises(ValueError, match="no step of DoReMi"):
        weights.propose(measured([0.1]), 0.1)


def test_a_state_goes_through_json_and_is_named() -> None:
    weights = DoremiWeights(DOMAINS[:2], DoremiConfig())
    weights.accept(weights.propose(measured([0.7, 0.2]), 0.1))
    other = DoremiWeights(DOMAINS[1::-1], DoremiConfig())
    other.load_state_dict(weights.state_dict())
    assert other.mean() == weights.mean()
    assert other.current() == weights.current()
    assert other.count == 1
