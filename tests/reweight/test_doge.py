"""The mathematics against the plain reference, on random gradients that are never all equal."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.config_sections import DogeConfig
from doge_ds.reweight.doge import DogeWeights, clip_factors, project_onto_simplex
from tests import reference_doge as reference
from tests.measured import Measured

TRAIN = ["a", "b", "c"]
TARGETS = {
    "all": ("all", TRAIN),
    "others": ("others", TRAIN),
    "mix": ("mix", [*TRAIN, "<mix>"]),
    "one outside": (["x"], [*TRAIN, "x"]),
    "outside and inside": (["x", "b"], [*TRAIN, "x"]),
}


def random_gradients(rows: int, steps: int, seed: int) -> list[torch.Tensor]:
    """Per step [rows, 40], correlated, with norms from about 0.3 to 6, so that every clip bites on some rows."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(40, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.05, 1.0, rows, dtype=torch.float64).unsqueeze(1)
    noise = [torch.randn(rows, 40, generator=generator, dtype=torch.float64) for _ in range(steps)]
    return [scale * (0.5 * common + matrix) for matrix in noise]


@pytest.mark.parametrize("target_case", TARGETS)
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "paper"},
        {"preset": "official"},
        {"preset": "paper", "normalize": "cosine"},
        {"preset": "official", "clip_domain_gradients": 2.5, "clip": [-0.5, 1.0]},
        {"preset": "paper", "smoothing": 0.05, "step_size": 0.002},
        {"preset": "official", "divergence": "euclidean"},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_thirty_steps_equal_the_reference(target_case: str, options: dict) -> None:
    target, row_names = TARGETS[target_case]
    doge = DogeConfig.model_validate({"target": target, "mu": 0.05, **options})
    weights = DogeWeights(TRAIN, row_names, doge)
    expected = [1 / 3] * 3
    history = []
    for step, gradients in enumerate(random_gradients(len(row_names), 30, seed=1)):
        rate = 0.001 * (step + 1)
        proposal = weights.propose(Measured(gradients @ gradients.T, row_names), rate)
        weights.accept(proposal)

        rows = [reference.clipped([row], doge.clip_domain_gradients) for row in gradients]
        chosen = [row_names.index(name) for name in target] if isinstance(target, list) else target
        found = reference.scores(rows[:3], rows[3:], chosen, doge.normalize, doge.clip)
        step_size = doge.step_size or rate
        expected = reference.new_weights(expected, found, step_size, doge.mu, doge.divergence, doge.smoothing)
        history.append(expected)

        assert proposal.scores.tolist() == pytest.approx(found, rel=1e-9, abs=1e-12)
        assert proposal.weights.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        model_gradient = sum(a * row[0] for a, row in zip(expected, rows[:3], strict=True))
        torch.testing.assert_close(proposal.coefficients @ gradients[:3], model_gradient, rtol=1e-9, atol=1e-12)
    mean = [math.fsum(step[j] for step in history) / 30 for j in range(3)]
    assert list(weights.mean().values()) == pytest.approx(mean, rel=1e-12)
    assert max(expected) - min(expected) > 1e-3  # the weights really moved apart


def test_official_preset_is_clip_one_mean_norm_and_scores_from_zero_to_five() -> None:
    doge = DogeConfig(preset="official")
    assert (doge.clip_domain_gradients, doge.normalize, doge.clip) == (1.0, "mean_gradient_norm", (0.0, 5.0))
    assert DogeConfig(preset="official", clip=None).clip is None


def test_self_term_leaves_with_others() -> None:
    gradients = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))  # orthogonal: nothing but self terms
    for target, expected in (("all", [1.0, 4.0, 9.0]), ("others", [0.0, 0.0, 0.0])):
        weights = DogeWeights(TRAIN, TRAIN, DogeConfig(target=target, preset="paper"))
        assert weights.propose(Measured(gradients @ gradients.T, TRAIN), 0.1).scores.tolist() == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gram_matrix_that_is_not_finite_proposes_no_change_and_spoils_the_gradient(bad: float) -> None:
    weights = DogeWeights(TRAIN, TRAIN, DogeConfig(target="all"))
    before = weights.state_dict()
    gram = torch.eye(3, dtype=torch.float64)
    gram[0, 2] = bad
    proposal = weights.propose(Measured(gram, TRAIN), 0.1)
    assert proposal.coefficients.isnan().all()  # so that the engine skips the step as a whole
    assert proposal.weights.tolist() == list(before["weights"].values())
    assert weights.state_dict() == before


def test_state_is_named_not_positional() -> None:
    doge = DogeConfig(target="all", preset="paper", mu=0.5)
    weights = DogeWeights(TRAIN, TRAIN, doge)
    for gradients in random_gradients(3, 4, seed=2):
        weights.accept(weights.propose(Measured(gradients @ gradients.T, TRAIN), 0.01))
    reordered = DogeWeights(["c", "a", "b"], ["c", "a", "b"], doge)
    reordered.load_state_dict(weights.state_dict())
    assert reordered.current() == weights.current()
    assert reordered.mean() == weights.mean()
    assert len(set(weights.current().values())) == 3
    with pytest.raises(ValueError, match="does not fit"):
        DogeWeights(["a", "b", "z"], ["a", "b", "z"], doge).load_state_dict(weights.state_dict())


def test_a_weight_that_underflowed_can_come_back() -> None:
    doge = DogeConfig(target=["x"], preset="paper", mu=1.0, step_size=1.0)
    weights = DogeWeights(["a", "b"], ["a", "b", "x"], doge)
    helps_a = torch.tensor([[1.0, 0, 2000], [0, 1, 0], [2000, 0, 1]], dtype=torch.float64)
    weights.accept(weights.propose(Measured(helps_a, ["a", "b", "x"]), 1.0))
    assert weights.current()["b"] == 0.0
    helps_b = torch.tensor([[1.0, 0, 0], [0, 1, 2000], [0, 2000, 1]], dtype=torch.float64)
    weights.accept(weights.propose(Measured(helps_b, ["a", "b", "x"]), 1.0))
    assert weights.current()["b"] > 0.99


def test_zero_gradients_score_zero_and_move_nothing() -> None:
    for normalize in ("none", "mean_gradient_norm", "cosine"):
        weights = DogeWeights(TRAIN, TRAIN, DogeConfig(target="all", preset="paper", normalize=normalize))
        proposal = weights.propose(Measured(torch.zeros(3, 3, dtype=torch.float64), TRAIN), 0.1)
        assert proposal.scores.tolist() == [0.0, 0.0, 0.0]
        assert proposal.weights.tolist() == pytest.approx([1 / 3] * 3)


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_projection_equals_bisection(point: list[float]) -> None:
    found = project_onto_simplex(torch.tensor(point, dtype=torch.float64))
    assert found.tolist() == pytest.approx(reference.nearest_point(point), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_clipped_norms_stay_below_the_limit_and_short_rows_untouched(norms: list[float], largest: float) -> None:
    values = torch.tensor(norms, dtype=torch.float64)
    factors = clip_factors(values, largest)
    assert bool((values * factors <= largest * (1 + 1e-12)).all())
    assert factors[values <= largest].tolist() == [1.0] * int((values <= largest).sum())


def test_rows_must_start_with_the_train_domains() -> None:
    with pytest.raises(ValueError, match="do not start with"):
        DogeWeights(["a", "b"], ["b", "a"], DogeConfig(target="all"))
