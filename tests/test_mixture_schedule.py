"""Which mixture holds from which step: configurations, files, published names, and changes of what a run records."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_ds.config import BaseConfig, load_config
from doge_ds.errors import ConfigError, DogeError, MixtureError, RunError
from doge_ds.mixture import Mixture, choose_mixture, normalized, published_mixture, published_names, tokenizer_warning
from doge_ds.mixture_schedule import BaseMixture, Stage, chosen_schedule, continued, mean_weights

TOKENS = {"a": 100, "b": 300}
A, B, C = ({"a": share, "b": 1 - share} for share in (0.25, 0.5, 0.75))


def configuration(folder: Path, **more: Any) -> tuple[BaseConfig, Path]:
    path = folder / "base.json"
    values = {
        "model": {"model_type": "gpt2"},
        "data": {"path": "store", "sequence_length": 8},
        "training": {"steps": 100, "global_batch_size": 4, "learning_rate": 0.1},
        "deepspeed": {},
    }
    path.write_text(json.dumps(values | more))
    return load_config(BaseConfig, path), path


def chosen(folder: Path, choice: str | None = None, **more: Any) -> list[tuple[int, dict[str, float]]]:
    config, path = configuration(folder, **more)
    return [(stage.from_step, stage.mixture.domains) for stage in chosen_schedule(config, choice, TOKENS, path)]


def stages(*pairs: tuple[int, dict[str, float]]) -> list[Stage]:
    return [Stage(start, Mixture(domains=weights)) for start, weights in pairs]


def test_the_configuration_and_the_option_say_what_holds(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"version": 1, "domains": C}))
    assert chosen(tmp_path, mixture="natural") == [(0, A)]
    assert chosen(tmp_path, mixture="m.json") == [(0, C)]  # relative to the configuration
    assert chosen(tmp_path, "uniform", mixture="m.json") == [(0, B)]
    listed = [
        {"from_step": 0, "mixture": "natural"},
        {"from_step": 10, "mixture": {"b": 0.75, "a": 0.25}},
        {"from_step": 20, "mixture": "m.json"},
    ]
    assert chosen(tmp_path, mixture=listed) == [(0, A), (20, C)]  # the second goes on with the first
    schedule = {"version": 1, "schedule": [{"from_step": 0, "mixture": B}, {"from_step": 60, "mixture": A}]}
    (tmp_path / "s.json").write_text(json.dumps(schedule))
    assert chosen(tmp_path, mixture="s.json") == chosen(tmp_path, str(tmp_path / "s.json")) == [(0, B), (60, A)]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ([], "mixture has stages from the steps [] on, not from 0"),
        ([{"from_step": 5, "mixture": "uniform"}], "stages from the steps [5] on, not from 0"),
        ([{"from_step": 0, "mixture": B}, {"from_step": 0, "mixture": A}], "not from 0 and then from later ones"),
        ([{"from_step": 0, "mixture": B}, {"from_step": 100, "mixture": A}], "not below training.steps 100"),
        ([{"from_step": "0", "mixture": B}], "a stage's from_step cannot stand"),
        ([{"from_step": 0, "mixture": {"a": "x", "b": 1}}], "a stage's mixture.a cannot stand"),
        ([{"from_step": 0}], "a stage's mixture cannot stand (Field required)"),
        ([{"from_step": 0, "mixture": {"a": 0.4, "b": 0.4}}], "from step 0: the weights sum to 0.8"),
        ([{"from_step": 0, "mixture": {"a": 0.4, "c": 0.6}}], "has a weight for 'c', which is no train domain"),
        ([{"from_step": 0, "mixture": "unifrom"}], "'unifrom' is no file and names no mixture; did you mean 'uniform'"),
        (7, "mixture: 7 cannot stand"),
        (None, "--mixture: is missing, and"),
        ("doge_slimpajma", "did you mean 'doge_slimpajama'?"),
        ("doge_slimpajama", "doge_slimpajama: has a weight for 'arxiv', which is no train domain; known are: a, b"),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, mixture: Any, message: str) -> None:
    with pytest.raises(DogeError) as caught:
        chosen(tmp_path, mixture=mixture)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 1, "schedule": []}, "write it like"),
        ({"version": 2, "schedule": [{"from_step": 0, "mixture": B}]}, "version"),
        ({"version": 1, "schedule": [{"from_step": 1, "mixture": B}]}, "not from 0"),
        ({"version": 1, "schedule": [{"from_step": 0, "mixture": B}, {"from_step": 200, "mixture": A}]}, "is 100"),
        ({"version": 1, "schedule": [{"from_step": 0, "mixture": B}], "x": 1}, "x cannot stand"),
    ],
)
def test_schedule_files_that_cannot_be_used(tmp_path: Path, values: Any, message: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(values))
    with pytest.raises((MixtureError, ConfigError), match=message):
        chosen(tmp_path, str(tmp_path / "s.json"))


def test_published_mixtures_say_where_they_come_from_and_sum_to_1() -> None:
    assert published_names() == [
        "doge_slimpajama",
        "doremi_10k_slimpajama",
        "doremi_50k_slimpajama",
        "natural_slimpajama",
    ]
    for name in published_names():
        mixture = published_mixture(name)
        assert sum(mixture.domains.values()) == pytest.approx(1, abs=1e-12)
        assert list(mixture.domains) == ["arxiv", "book", "c4", "commoncrawl", "github", "stackexchange", "wikipedia"]
        assert mixture.source["url"].startswith("https://")
        assert mixture.source["published"]
        assert choose_mixture(name, dict.fromkeys(mixture.domains, 1)) == mixture
    assert published_mixture("doremi_10k_slimpajama").domains["github"] == pytest.approx(0.2940 / 1.0001, rel=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(lambda weights: sum(weights) > 1e-3))
def test_what_was_normalized_once_stays_as_it_is(weights: list[float]) -> None:
    once = normalized({str(number): weight for number, weight in enumerate(weights)}, "here", float("inf"))
    assert normalized(json.loads(json.dumps(once)), "here") == once


def test_another_tokenizer_is_told() -> None:
    mixture = Mixture(domains=A, source={"tokenizer_sha256": "1" * 64})
    assert tokenizer_warning(mixture, "m.json", "1" * 64) == tokenizer_warning(Mixture(domains=A), "m", "1") == ""
    warning = tokenizer_warning(mixture, "m.json", "2" * 64)
    assert warning.startswith("warning: m.json: the weights were learned with another tokenizer (1111")
    assert "\n" not in warning


def test_the_mean_over_steps() -> None:
    pairs = [(0, A), (10, B), (20, C)]
    assert mean_weights(pairs, 10) == A
    assert mean_weights(pairs, 15)["a"] == pytest.approx((10 * 0.25 + 5 * 0.5) / 15)
    assert mean_weights(pairs, 40)["a"] == pytest.approx((2.5 + 5 + 15) / 40)
    assert mean_weights(pairs, 0) == A


def record(run: Path, mixture: BaseMixture) -> None:
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps(mixture.facts(100)))


def look(run: Path, asked: list[Stage], done: int, change: bool = False) -> BaseMixture:
    return continued(asked, run, done, 100, change)


def test_a_change_is_recorded_and_found_again_however_often_it_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert look(run, stages((0, A)), 0, change=True) == BaseMixture(stages((0, A)))  # there is no run to change
    record(run, look(run, stages((0, A)), 0))
    assert "schedule" not in json.loads((run / "run.json").read_text())
    assert look(run, stages((0, B)), 30).stages == stages((0, B))  # RunDirectory refuses it

    change = look(run, stages((0, B)), 30, change=True)
    assert change == BaseMixture(stages((0, A), (30, B)), stages((0, B)), 30)
    assert look(run, stages((0, B)), 30, change=True) == change  # killed before it was recorded
    record(run, change)
    for done in (18, 30, 60, 100):  # killed before or after the next checkpoint, or set back to an older one
        for flag in (False, True):
            same = look(run, stages((0, B)), done, flag)
            assert same == BaseMixture(change.stages, change.given)
            assert same.facts(100) == json.loads((run / "run.json").read_text())
            assert look(run, stages((0, A), (30, B)), done, flag) == same  # RUN/config.json
    assert look(run, stages((0, A)), 60).stages == stages((0, A))  # what was there before is another run now
    back = look(run, stages((0, A)), 60, change=True)
    assert back == BaseMixture(stages((0, A), (30, B), (60, A)), stages((0, A)), 60)
    assert look(run, stages((0, A)), 30, change=True) == BaseMixture(stages((0, A)), None, 30)
    assert look(run, stages((0, C)), 0, change=True) == BaseMixture(stages((0, C)), None, 0)
    with pytest.raises(RunError, match="has done all its 100 steps"):
        look(run, stages((0, C)), 100, change=True)


def test_of_a_new_schedule_the_later_stages_hold(tmp_path: Path) -> None:
    record(tmp_path, BaseMixture(stages((0, A), (80, B))))
    change = look(tmp_path, stages((0, B), (20, C), (50, B)), 30, change=True)
    assert change.stages == stages((0, A), (30, C), (50, B))
    assert change.given == stages((0, B), (20, C), (50, B))


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_no_step_that_is_behind_gets_another_mixture(old: list[int], new: list[int], done: int) -> None:
    import tempfile

    def at(found: list[Stage], step: int) -> dict[str, float]:
        return [stage for stage in found if stage.from_step <= step][-1].mixture.domains

    before, asked = (stages(*((17 * n, (A, B, C)[which]) for n, which in enumerate(each))) for each in (old, new))
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), BaseMixture(before))
        found = look(Path(folder), asked, done, change=True)
    if found.changed_at is not None:
        assert [at(found.stages, step) for step in range(100)] == [
            at(before if step < done else asked, step) for step in range(100)
        ]
