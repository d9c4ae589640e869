"""Models on the command line of eval/run.py."""

from pathlib import Path

import pytest

from doge_ds.errors import ConfigError, DogeError, ModelError
from doge_ds.model_places import find_models


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two finished runs, one under way, and a folder of a model."""
    for name in ("uniform", "doge", "young"):
        for step in ("step00000100", "step00000200", "step00000300.tmp"):
            (tmp_path / f"runs/{name}/checkpoints/{step}").mkdir(parents=True)
        (tmp_path / f"runs/{name}/run.json").write_text("{}")
    for name in ("uniform", "doge"):
        (tmp_path / f"runs/{name}/hf").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_stands_for_its_model(runs: Path) -> None:
    (place,) = find_models(["runs/doge/"])
    assert (place.folder, place.label, place.results) == ("runs/doge/hf", "doge", Path("runs/doge/results.json"))


def test_folders_and_names_of_the_hub_are_taken_as_they_are(runs: Path) -> None:
    folder, name = find_models(["model", "EleutherAI/pythia-70m"])
    assert (folder.folder, folder.results) == ("model", Path("model/results.json"))
    assert (name.folder, name.label, name.results) == ("EleutherAI/pythia-70m", "pythia-70m", Path("results.json"))


def test_a_checkpoint_is_exported_later(runs: Path) -> None:
    (place,) = find_models(["runs/young/checkpoints/step00000100"])
    assert place.folder is None
    assert place.results == runs / "runs/young/results_step00000100.json"


def test_a_pattern_stands_for_what_it_matches_in_order(runs: Path) -> None:
    found = find_models(["runs/*/hf", "runs/young/checkpoints/step????????"])
    assert [place.name for place in found] == [
        "runs/doge/hf",
        "runs/uniform/hf",
        "runs/young/checkpoints/step00000100",
        "runs/young/checkpoints/step00000200",
    ]
    assert [place.label for place in found] == ["doge", "uniform", "step00000100", "step00000200"]


def test_labels_are_as_long_as_they_must(runs: Path) -> None:
    found = find_models(["runs/doge/checkpoints/step00000100", "runs/uniform/checkpoints/step00000100"])
    assert [place.label for place in found] == ["doge_step00000100", "uniform_step00000100"]


@pytest.mark.parametrize(
    ("names", "message", "kind"),
    [
        (["runs/x*"], r"--model runs/x\*: matches no folder; check the pattern", ModelError),
        (["runs/young"], "--model runs/young: is a run that has exported no model yet", ModelError),
        (["model", "runs/doge", "model"], "--model model: is named twice", ConfigError),
        (["runs/*/hf", "runs/doge/hf"], "--model runs/doge/hf: is named twice", ConfigError),
    ],
)
def test_mistakes(runs: Path, names: list[str], message: str, kind: type[DogeError]) -> None:
    with pytest.raises(kind, match=message):
        find_models(names)
