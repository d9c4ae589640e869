"""COMPARISON.json: what it may say, and one line for what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from doge_ds.errors import ConfigError
from doge_ds.experiments.comparison_config import ComparisonConfig, as_settings, load_comparison

LEAST: dict[str, Any] = {"base": "base.json", "mixtures": {"uniform": "uniform"}}


def load(folder: Path, values: Any, *settings: str) -> ComparisonConfig:
    path = folder / "c.json"
    path.write_text(json.dumps(values))
    return load_comparison(path, settings)


def test_a_word_is_short_for_a_mixture_that_is_given(tmp_path: Path) -> None:
    config = load(tmp_path, {**LEAST, "mixtures": {"u": "uniform", "n": {"mixture": "natural", "against": "n"}}})
    assert [entry.mixture for entry in config.mixtures.values()] == ["uniform", "natural"]
    assert (config.against_of("u"), config.against_of("n")) == ("u", "n")
    assert config.seeds == [0]


def test_settings_keep_their_dots_and_the_last_wins(tmp_path: Path) -> None:
    values = {**LEAST, "proxy": "p.json", "mixtures": {"u": "uniform", "d": {"proxy": {"doge.mu": 1}}}}
    settings = [
        "proxy_settings.training.steps=3",
        "base_settings.data.path=a b",
        "mixtures.d.proxy.doge.target=[\"x\"]",
        "seeds=[4, 5]",
        "evaluation.limit=0.5",
        "against=d",
    ]  # fmt: skip
    config = load(tmp_path, values, *settings)
    assert config.proxy_settings == {"training.steps": 3}
    assert config.base_settings == {"data.path": "a b"}
    assert config.mixtures["d"].proxy == {"doge.mu": 1, "doge.target": ["x"]}
    assert (config.seeds, config.evaluation.limit, config.against) == ([4, 5], 0.5, "d")
    assert as_settings({"a.b": 1, "c": "x y"}, {"a.b": None}) == ["a.b=1", 'c="x y"', "a.b=null"]


def test_settings_reach_mixtures_whose_names_have_dots(tmp_path: Path) -> None:
    mixtures = {"mu 0": {"proxy": {}}, "mu 0.1": {"proxy": {}}, "mu 0.1.base": {"proxy": {}}}
    values = {**LEAST, "proxy": "p.json", "mixtures": mixtures}
    settings = [
        "mixtures.mu 0.1.proxy.doge.mu=0.1",
        "mixtures.mu 0.1.base.base.training.steps=3",
        "mixtures.mu 0=natural",
    ]
    found = load(tmp_path, values, *settings).mixtures
    assert found["mu 0.1"].proxy == {"doge.mu": 0.1}
    assert found["mu 0.1.base"].base == {"training.steps": 3}
    assert found["mu 0"].mixture == "natural"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bas": "x"}, "c.json: bas: unknown key; did you mean 'base'?"),
        ({"evaluation": {"dat": "x"}}, "c.json: evaluation.dat: unknown key; did you mean 'data'?"),
        ({"mixtures": {"u": {"mixtur": "uniform"}}}, "c.json: mixtures.u.mixtur: unknown key; did you mean 'mixture'?"),
        ({"mixtures": {"u": {}}}, "c.json: mixtures.u: it needs either mixture, which is given, or"),
        ({"mixtures": {"u": {"mixture": "uniform", "proxy": {}}}}, "c.json: mixtures.u: it needs either mixture"),
        ({"mixtures": {"u": {"mixture": "uniform", "stages": 2}}}, "mixtures.u: stages belongs to a mixture that a"),
        ({"mixtures": {"u": 3}}, "c.json: mixtures.u: 3 cannot stand"),
        ({"mixtures": {}}, "c.json: mixtures: {} cannot stand"),
        ({"mixtures": {"d": {"proxy": {}}}}, "c.json: the file: 'd' is learned, and there is no proxy to learn it"),
        ({"base": None}, "c.json: the file: it names neither a proxy nor a base"),
        ({"seeds": [1, 1]}, "c.json: seeds: [1, 1] are no distinct numbers from 0 on"),
        ({"seeds": [-1]}, "c.json: seeds: [-1] are no distinct numbers from 0 on"),
        ({"seeds": ["1"]}, 'c.json: seeds.0: "1" cannot stand; it should be a valid integer'),
        ({"seeds": []}, "c.json: seeds: [] cannot stand"),
        ({"against": "unifrom"}, "c.json: against: 'unifrom' is no mixture here; did you mean 'uniform'?"),
        ({"mixtures": {"u": {"mixture": "uniform", "against": "n"}}}, "mixtures.u.against: 'n' is no mixture here"),
        ({"mixtures": {"u": {"mixture": "uniform", "has_base": False}, "n": "natural"}},
         "c.json: mixtures.u.has_base: 'n' is compared with 'u', which has no base"),
        ({"base_settings": {"training.seed": 3}}, "c.json: base_settings: sets training.seed; name all seeds in"),
        ({"proxy": "p.json", "mixtures": {"u": "uniform", "d": {"proxy": {"doge": {"mu": 1}}}}},
         "c.json: mixtures.d.proxy: doge would replace all of the section that the file has; write its keys with dots"),
        ({"evaluation": {"limit": 1.5}}, "evaluation.limit: limit 1.5 is neither a part, below 1, nor a whole number"),
        ({"mixtures": {"u": {"mixture": "uniform", "groups": ["cod"]}}, "groups": {"code": ["a"]}},
         "c.json: mixtures.u.groups: 'cod' is no group here; did you mean 'code'?"),
        ({"groups": {"all": []}}, "c.json: the file: the group 'all' names no domain, or one twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, {**LEAST, **changes})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds", "--set seeds: is no assignment"),
        ("base.x=1", "--set base.x=1: base is no section"),
        ("mixtures.x.proxy.doge.mu=0.5", "--set mixtures.x.proxy.doge.mu=0.5: 'x' is no mixture here"),
        ("seed=[1]", "c.json: seed: unknown key; did you mean 'seeds'?"),
        ("seeds=\udc80", "--set seeds=\\udc80: it has \\udc80, half of a character"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, LEAST, setting)
    assert message in str(raised.value)
