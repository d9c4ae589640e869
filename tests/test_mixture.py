"""Mixtures: reading, writing, and the refusals."""

import json
from pathlib import Path

import pytest

from doge_ds.errors import ConfigError, MixtureError
from doge_ds.mixture import Mixture, choose_mixture, read_mixture

TOKENS = {"a": 100, "b": 300, "c": 600}


def write(folder: Path, domains: object, **more: object) -> Path:
    path = folder / "mixture.json"
    path.write_text(json.dumps({"version": 1, "domains": domains, **more}))
    return path


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    mixture = Mixture(domains={"a": 0.1, "b": 0.7, "c": 0.2}, kind="mean", source={"method": "doge", "step": 3})
    mixture.write(tmp_path / "mixture.json")
    assert read_mixture(tmp_path / "mixture.json") == mixture
    assert json.loads((tmp_path / "mixture.json").read_text())["kind"] == "mean"
    assert [path.name for path in tmp_path.iterdir()] == ["mixture.json"]


def test_weights_go_by_name_and_a_small_error_of_the_sum_is_divided_out(tmp_path: Path) -> None:
    path = write(tmp_path, {"c": 0.2, "a": 0.3, "b": 0.5000005})
    mixture = choose_mixture(str(path), TOKENS)
    assert list(mixture.domains) == ["a", "b", "c"]
    assert mixture.domains["a"] == pytest.approx(0.3 / 1.0000005, rel=1e-12)
    assert sum(mixture.domains.values()) == pytest.approx(1, abs=1e-15)


def test_uniform_and_natural() -> None:
    assert choose_mixture("uniform", TOKENS).domains == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert choose_mixture("natural", TOKENS).domains == {"a": 0.1, "b": 0.3, "c": 0.6}
    assert Mixture.uniform(["z"]).domains == {"z": 1.0}


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"a": 0.5, "b": 0.3, "bb": 0.2}, "has a weight for 'bb', which is no train domain; did you mean 'b'?"),
        ({"a": 0.5, "b": 0.5}, "has no weight for 'c'; add it (0 is allowed)"),
        ({"a": 0.5, "b": 0.3, "c": 0.21}, "the weights sum to 1.01; divide each by that"),
        ({"a": 1.5, "b": -0.5, "c": 0}, "mixture.json: b: -0.5 is no weight"),
        ({"a": "much", "b": 0.5, "c": 0.5}, "domains.a: Input should be a valid number"),
        ({}, "domains: Dictionary should have at least 1 item"),
        ([0.5, 0.5], "domains: Input should be"),
    ],
)
def test_each_mistake_gets_one_line(tmp_path: Path, domains: object, message: str) -> None:
    with pytest.raises(MixtureError) as caught:
        choose_mixture(str(write(tmp_path, domains)), TOKENS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_mixtures(tmp_path: Path) -> None:
    (tmp_path / "not.json").write_text("weights: 1")
    with pytest.raises(MixtureError, match="is no JSON"):
        read_mixture(tmp_path / "not.json")
    (tmp_path / "nan.json").write_text('{"version": 1, "domains": {"a": NaN}}')
    with pytest.raises(MixtureError):
        read_mixture(tmp_path / "nan.json")
    with pytest.raises(MixtureError, match="No such file"):
        read_mixture(tmp_path / "none.json")
    with pytest.raises(MixtureError, match="unknown"):
        read_mixture(write(tmp_path, {"a": 1.0}, unknown=1))
    with pytest.raises(ConfigError, match=r"names no mixture; did you mean 'uniform'"):
        choose_mixture("unifrom", TOKENS)
