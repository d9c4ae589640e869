"""Each warning just beyond its threshold and just short of it; scalars; a resumed run says the same."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from doge_ds.config_sections import DogeConfig
from doge_ds.reweight import diagnostics as module
from doge_ds.reweight.diagnostics import Diagnostics
from doge_ds.reweight.doge import DogeWeights
from doge_ds.reweight.domain_weights import Proposal
from tests.measured import Measured

NAN = math.nan
ABC = ["a", "b", "c"]
OFFICIAL = DogeConfig(target="all")  # scores between 0 and 5, domain gradients up to a norm of 1
PAPER = DogeConfig(target="all", preset="paper")


def proposal(
    weights: Sequence[float] = (0.3, 0.3, 0.4),
    raw_scores: Sequence[float] | None = None,
    norms: Sequence[float] | None = None,
) -> Proposal:
    """What `propose` returns, with what diagnostics read; NaN is the score of an absent domain. By default all well."""
    raw = torch.tensor(raw_scores or [1.0] * len(weights), dtype=torch.float64)
    present = ~raw.isnan()
    row_norms = torch.tensor(norms or [1.0] * int(present.sum()), dtype=torch.float64)
    return Proposal(torch.tensor(weights, dtype=torch.float64), raw, raw, present, row_norms, row_norms)


def watched(proposals: Sequence[Proposal], doge: DogeConfig = OFFICIAL, domains: Sequence[str] = ABC) -> Diagnostics:
    """A run of these updates, one a step."""
    diagnostics = Diagnostics(domains, doge, len(proposals))
    for step, made in enumerate(proposals):
        diagnostics.observe(step, made)
    return diagnostics


def only_warning(diagnostics: Diagnostics, finished: bool = False) -> str:
    """The one warning that a run gives, in the form that all have, and never again."""
    (line,) = diagnostics.warnings(finished)
    assert line.count(";") == 1
    assert "\n" not in line
    assert diagnostics.warnings(finished) == []
    return line


def one_and_others(largest: float, k: int) -> list[float]:
    return [largest, *[(1 - largest) / (k - 1)] * (k - 1)]


def test_a_run_without_trouble_gives_no_warning() -> None:
    assert watched([proposal()] * 200).warnings(finished=True) == []
    assert Diagnostics(ABC, OFFICIAL, 10).warnings(finished=True) == []


@pytest.mark.parametrize(("k", "well", "collapsed"), [(2, 0.85, 0.87), (7, 0.92, 0.93)])
def test_collapse_onto_one_domain(k: int, well: float, collapsed: float) -> None:
    domains = [f"d{number}" for number in range(k)]
    assert watched([proposal(one_and_others(well, k))], domains=domains).warnings() == []
    line = only_warning(watched([proposal(one_and_others(collapsed, k))], domains=domains))
    assert f"effective domains of {k} (d0 {collapsed:.3f});" in line
    assert "raise doge.mu (now 0.01), or raise doge.smoothing (now 0)" in line


@pytest.mark.parametrize(("left", "warns"), [(3, True), (5, False)])
def test_collapse_of_many_domains_is_less_than_a_tenth_of_them(left: int, warns: bool) -> None:
    weights = [1 / left] * left + [0.0] * (40 - left)
    diagnostics = watched([proposal(weights)], domains=[f"d{number}" for number in range(40)])
    assert diagnostics.scalars()["effective_domains"] == pytest.approx(left)
    assert bool(diagnostics.warnings()) is warns


def test_a_warning_names_three_domains_and_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLLAPSED_DOMAINS", 6.0)
    weights = [0.1, 0.18, 0.2, 0.19, 0.17, 0.16, 0.0, 0.0]
    line = only_warning(watched([proposal(weights)], domains=list("abcdefgh")))
    assert "(c 0.200, d 0.190, b 0.180 and 2 more);" in line


def test_collapse_is_of_the_current_weights_and_said_once() -> None:
    diagnostics = Diagnostics(ABC, OFFICIAL, 100)
    given = []
    for step, largest in enumerate([0.4, 0.95, 0.4, 0.95]):
        diagnostics.observe(step, proposal(one_and_others(largest, 3)))
        given.append(len(diagnostics.warnings()))
    assert given == [0, 1, 0, 0]


def test_one_domain_is_no_collapse() -> None:
    bad = proposal([1.0], [-1.0])
    assert watched([bad] * 50, domains=["a"]).warnings(finished=True) == []


def drifting(distance: float, steps: int = 100) -> Diagnostics:
    """Weights that lie in the last tenth of the run `distance` from those before."""
    before, after = [0.3, 0.3, 0.4], [0.3 + distance, 0.3, 0.4 - distance]
    return watched([proposal(after if step >= steps * 0.9 else before) for step in range(steps)])


def test_weights_that_have_not_settled() -> None:
    threshold = module.UNSETTLED
    assert drifting(threshold * 0.98).warnings(finished=True) == []
    diagnostics = drifting(threshold * 1.02)
    assert diagnostics.warnings() == []  # not before the end
    line = only_warning(diagnostics, finished=True)
    moved = threshold * 1.02
    assert f"distance of {moved:.3f} (a +{moved:.3f}, c -{moved:.3f});" in line
    assert "raise training.steps, or raise doge.mu (now 0.01)" in line


def test_weights_that_moved_before_the_last_two_tenths_have_settled() -> None:
    run = [proposal([0.1, 0.1, 0.8] if step < 80 else [0.4, 0.3, 0.3]) for step in range(100)]
    assert watched(run).warnings(finished=True) == []


def test_a_run_without_updates_in_a_tenth_is_not_judged() -> None:
    diagnostics = Diagnostics(ABC, OFFICIAL, 100)
    for step, weights in ((5, [0.1, 0.1, 0.8]), (95, [0.8, 0.1, 0.1])):
        diagnostics.observe(step, proposal(weights))
    assert "weight_drift" not in diagnostics.scalars()
    assert diagnostics.warnings(finished=True) == []


def test_weight_drift_compares_the_tenth_under_way_with_the_one_before() -> None:
    diagnostics = Diagnostics(ABC, OFFICIAL, 20)
    drifts = []
    for step, moved in enumerate([0.0, 0.2, 0.3, 0.1]):
        diagnostics.observe(step, proposal([0.3 + moved, 0.3, 0.4 - moved]))
        drifts.append(diagnostics.scalars().get("weight_drift"))
    assert drifts[:2] == [None, None]
    assert drifts[2:] == pytest.approx([0.2, 0.1])  # from a mean of 0.1: 0.3, then (0.3 + 0.1) / 2


@pytest.mark.parametrize(("clipped", "warns"), [(49, False), (50, True)])
def test_updates_whose_scores_are_all_clipped(clipped: int, warns: bool) -> None:
    # 60 good updates come first: they have left the last 100.
    useless, useful = proposal(raw_scores=[9.0, -1.0, 6.0]), proposal(raw_scores=[9.0, 1.0, 6.0])
    diagnostics = watched([useful] * 60 + [useless, useful] * clipped + [useful] * (100 - 2 * clipped))
    if warns:
        line = only_warning(diagnostics)
        assert "in 50 of the last 100 updates" in line
        assert "widen doge.clip (now [0.0, 5.0]) or change doge.normalize" in line
    else:
        assert diagnostics.warnings() == []


def test_scores_on_a_bound_are_not_clipped_and_without_bounds_none_is() -> None:
    on_the_bounds = watched([proposal(raw_scores=[0.0, 5.0, 0.0])] * 50)
    found = on_the_bounds.scalars()
    assert (found["clipped_low_share"], found["clipped_high_share"]) == (0.0, 0.0)
    assert on_the_bounds.warnings() == []
    assert watched([proposal(raw_scores=[9.0, -1.0, 9.0])] * 50, PAPER).warnings() == []


def test_nothing_is_said_of_scores_in_fewer_than_twenty_updates() -> None:
    useless = proposal(raw_scores=[-9.0, -1.0, 6.0], norms=[1.0, 1.0, 0.01])
    assert watched([useless] * 19).warnings() == []
    assert len(watched([useless] * 20).warnings()) == 3


def test_absent_domains_make_no_score_unclipped() -> None:
    line = only_warning(watched([proposal(raw_scores=[9.0, NAN, 6.0])] * 20))
    assert "in 20 of the last 20 updates" in line


def test_negative_scores_clipped_away() -> None:
    bad, good = proposal(raw_scores=[-1.0, -2.0, 1.0]), proposal(raw_scores=[1.0, -2.0, 1.0])
    half = [proposal(raw_scores=[-1.0, -1.0, 1.0])] * 30 + [proposal(raw_scores=[-1.0, 1.0, 1.0])] * 30
    assert watched(half).warnings() == []  # 90 of 180
    line = only_warning(watched([*half, bad]))
    assert "50% of all scores are negative and clipped to 0" in line
    line = only_warning(watched([bad] * 30 + [good] * 10))
    assert "58% of all scores" in line
    assert "(b 100%, a 75%); set doge.clip=null or another doge.target" in line


@pytest.mark.parametrize("doge", [PAPER, DogeConfig(target="all", clip=(-5.0, 5.0))], ids=["no clip", "negative bound"])
def test_negative_scores_that_are_kept_are_no_matter(doge: DogeConfig) -> None:
    assert watched([proposal(raw_scores=[-1.0, -2.0, 1.0])] * 40, doge).warnings() == []


def test_absent_domains_have_no_negative_scores() -> None:
    assert watched([proposal(raw_scores=[-1.0, NAN, 1.0])] * 40).warnings() == []  # half of those there, not a third
    only_warning(watched([proposal(raw_scores=[-1.0, NAN, 1.0])] * 40 + [proposal(raw_scores=[-1.0, NAN, NAN])]))


def test_gradient_norms_that_differ_ten_times() -> None:
    assert watched([proposal(norms=[0.5, 4.9, 1.0])] * 20, PAPER).warnings() == []
    line = only_warning(watched([proposal(norms=[0.5, 5.1, 1.0])] * 20, PAPER))
    assert "differ more than 10 times: b 5.1 against a 0.5," in line
    assert 'set doge.normalize="cosine" or a lower doge.clip_domain_gradients (now null)' in line


def test_gradient_norms_count_as_scores_see_them() -> None:
    norms = [0.5, 50.0, 0.7]
    clipped_at_one = watched([proposal(norms=norms)] * 20, OFFICIAL)
    assert clipped_at_one.warnings() == []
    assert clipped_at_one.scalars()["gradient_norm_ratio"] == 100.0
    assert watched([proposal(norms=norms)] * 20, DogeConfig(preset="paper", normalize="cosine")).warnings() == []
    line = only_warning(watched([proposal(norms=[0.05, 50.0, 0.7])] * 20, OFFICIAL))
    assert ": b 1 against a 0.05," in line
    assert "(now 1.0)" in line


def test_old_gradient_norms_are_forgotten() -> None:
    early, late = proposal(norms=[1.0, 500.0, 1.0]), proposal(norms=[1.0, 1.0, 1.0])
    assert watched([early] * 20 + [late] * 20, PAPER).warnings() != []
    assert watched([early] * 20 + [late] * 300, PAPER).warnings() == []


def test_a_rare_domain_remembers_its_own_last_updates() -> None:
    early, without = proposal(norms=[1.0, 15.0, 1.0]), proposal(raw_scores=[1.0, NAN, 1.0])
    late = [without] * 9 + [proposal(norms=[1.0, 3.0, 1.0])]
    assert "b 11.9 against" in only_warning(watched([early] * 100 + late * 20, PAPER))


def test_a_domain_seen_too_seldom_has_no_mean_norm() -> None:
    def run(largest: float) -> list[Proposal]:
        seldom, often = (
            proposal(norms=[1.0, largest, 0.001]),
            proposal(raw_scores=[1.0, 1.0, NAN], norms=[1.0, largest]),
        )
        return [seldom] * 19 + [often] * 30

    assert watched(run(9.9), PAPER).warnings() == []
    assert "b 10.1 against a 1," in only_warning(watched(run(10.1), PAPER))


def test_a_domain_whose_gradient_is_zero_has_no_ratio_and_is_named() -> None:
    diagnostics = watched([proposal(norms=[0.0, 0.2, 0.3])] * 20, PAPER)
    assert "gradient_norm_ratio" not in diagnostics.scalars()
    assert "against a 0," in only_warning(diagnostics)


def test_norms_of_the_rows_that_a_step_has_go_to_their_domains() -> None:
    """Through the real `propose`: two of three domains a step, then the row of the mix, which is no train domain."""
    doge = DogeConfig(target="mix", preset="paper", domains_per_step=2)
    rows = [*ABC, "<mix>"]
    weights, diagnostics = DogeWeights(ABC, rows, doge), Diagnostics(ABC, doge, 60)
    gradients = torch.eye(4, dtype=torch.float64) * torch.tensor([2.0, 3.0, 44.0, 100.0], dtype=torch.float64)
    for step in range(60):
        there = [row for row in range(4) if row != step % 3]
        gram = (gradients @ gradients.T)[there][:, there]
        made = weights.propose(Measured(gram, [rows[row] for row in there]), 1e-6)
        weights.accept(made)
        diagnostics.observe(step, made)
    assert diagnostics.scalars()["gradient_norm_ratio"] == pytest.approx(22.0)
    assert "c 44 against a 2," in only_warning(diagnostics)


def test_shares_and_ratio_are_since_the_last_logged_line() -> None:
    diagnostics = Diagnostics(ABC, OFFICIAL, 100)
    diagnostics.observe(0, proposal(raw_scores=[-1.0, 7.0, 8.0], norms=[1.0, 2.0, 4.0]))
    diagnostics.observe(1, proposal(raw_scores=[2.0, NAN, NAN], norms=[3.0]))
    found = diagnostics.scalars()
    assert found["clipped_low_share"] == 1 / 4
    assert found["clipped_high_share"] == 2 / 4
    assert found["gradient_norm_ratio"] == 4.0 / 2.0  # a has a mean of 2
    between = diagnostics.scalars()
    assert set(between) == {"effective_domains"}  # no update since
    assert between["effective_domains"] == found["effective_domains"]
    diagnostics.observe(2, proposal(raw_scores=[-1.0, NAN, NAN], norms=[3.0]))
    assert diagnostics.scalars()["clipped_low_share"] == 1.0


def test_shares_are_left_out_without_bounds() -> None:
    assert not {"clipped_low_share", "clipped_high_share"} & set(watched([proposal()], PAPER).scalars())


def random_run(steps: int) -> list[Proposal]:
    """Weights that collapse, scores in and out of the bounds, norms far apart, a domain absent now and then."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for step in range(steps):
        raw = (torch.randn(3, generator=generator, dtype=torch.float64) * 6 - 2).tolist()
        raw = [NAN if number == step % 5 else score for number, score in enumerate(raw)]
        norms = torch.rand(3, generator=generator, dtype=torch.float64) * torch.tensor([0.04, 1.0, 9.0])
        weights = torch.softmax(torch.tensor([0.0, 0.1, step / 30], dtype=torch.float64), 0)
        there = [norm for norm, score in zip(norms.tolist(), raw, strict=True) if not math.isnan(score)]
        found.append(proposal(weights.tolist(), raw, there))
    return found


@pytest.mark.parametrize("stop", [7, 63, 149])
def test_a_resumed_run_says_exactly_the_same(stop: int) -> None:
    steps = 160
    straight, resumed = Diagnostics(ABC, OFFICIAL, steps), Diagnostics(ABC, OFFICIAL, steps)
    said: list[list[Any]] = [[], []]
    for step, made in enumerate(random_run(steps)):
        if step == stop:
            state = json.loads(json.dumps(resumed.state_dict(), allow_nan=False))
            resumed = Diagnostics(ABC, OFFICIAL, steps)
            resumed.load_state_dict(state)
        for diagnostics, lines in zip((straight, resumed), said, strict=True):
            diagnostics.observe(step, made)
            lines += diagnostics.warnings()
            if step % 10 == 9:
                lines.append(diagnostics.scalars())
    assert said[0] == said[1]
    assert straight.state_dict() == resumed.state_dict()
    assert straight.warnings(finished=True) == resumed.warnings(finished=True)
    assert len([line for line in said[0] if isinstance(line, str)]) >= 3


def test_a_state_is_not_changed_by_the_run_that_goes_on() -> None:
    diagnostics = Diagnostics(ABC, OFFICIAL, 30)
    state = diagnostics.state_dict()
    written = json.dumps(state)
    for step, made in enumerate(random_run(30)):
        diagnostics.observe(step, made)
        diagnostics.warnings()
    assert json.dumps(state) == written


def test_the_state_of_other_domains_is_refused() -> None:
    state = Diagnostics(["a", "b", "z"], OFFICIAL, 10).state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        Diagnostics(ABC, OFFICIAL, 10).load_state_dict(state)


def test_memory_does_not_grow_with_the_run() -> None:
    def numbers(value: Any) -> int:
        if isinstance(value, dict):
            return sum(map(numbers, value.values()))
        return sum(map(numbers, value)) if isinstance(value, list) else 1

    def size(steps: int) -> int:
        return numbers(watched([proposal()] * steps).state_dict())

    assert size(module.RECENT) == size(10 * module.RECENT) < 100 * 3
