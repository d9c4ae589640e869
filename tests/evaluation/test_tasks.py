"""Tasks by name, and their datasets."""

import json
from pathlib import Path

import pytest

from doge_ds.errors import ConfigError
from doge_ds.evaluation.tasks import MARK, SUITES, UNFINISHED, check_datasets, choose_tasks, dataset_of, definition_for

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests/fixtures/tasks_measuring_nothing"


def test_suites_groups_and_tags_are_written_out_each_task_once() -> None:
    assert choose_tasks(["piqa", "doge6", "copa"]) == ["piqa", "copa", "sciq", "logiqa", "wic", "winogrande"]
    assert choose_tasks(["ai2_arc"]) == ["arc_challenge", "arc_easy"]
    assert len(choose_tasks(["mmlu"])) == 57
    assert choose_tasks([]) == []


def test_definitions_of_the_users_own_are_known_and_include_stock_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("include: sciq_base.yaml\ntask: mine\ndataset_path: me/mine\n")
    (tmp_path / "sciq_base.yaml").write_text("dataset_name: easy\noutput_type: multiple_choice\n")
    assert choose_tasks(["mine"], tmp_path) == ["mine"]
    assert dataset_of("mine", tmp_path) == ("me/mine", "easy")
    with pytest.raises(ConfigError, match="--tasks mine: is no task of lm-eval"):
        choose_tasks(["mine"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("winogrand", "did you mean 'winogrande'?"),
        ("doge66", "did you mean 'doge6'?"),
        ("qxqxqx", "`lm_eval ls tasks`"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_name(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_tasks([name])
    assert f"--tasks {name}: is no task of lm-eval; {remedy}" in str(caught.value)


def test_the_datasets_are_those_of_the_stock_definitions() -> None:
    """As lm-eval 0.4.13 has them: a change there needs a new fixture."""
    assert {task: dataset_of(task) for task in SUITES["doge6"]} == {
        "copa": ("aps/super_glue", "copa"),
        "sciq": ("allenai/sciq", None),
        "logiqa": ("EleutherAI/logiqa", "logiqa"),
        "piqa": ("baber/piqa", None),
        "wic": ("aps/super_glue", "wic"),
        "winogrande": ("allenai/winogrande", "winogrande_xl"),
    }


def test_a_root_of_datasets_changes_the_path_and_nothing_else() -> None:
    stock, here = definition_for("copa", None), definition_for("copa", FIXTURE)
    assert stock == "copa"
    assert isinstance(here, dict)
    assert here["dataset_path"] == str(FIXTURE / "aps/super_glue")
    assert callable(here["doc_to_text"])
    assert (here["dataset_name"], here["output_type"]) == ("copa", "multiple_choice")


def test_each_missing_dataset_is_named(tmp_path: Path) -> None:
    check_datasets(SUITES["doge6"], FIXTURE)
    (tmp_path / "baber/piqa").mkdir(parents=True)  # there, and empty
    sciq = tmp_path / "allenai/sciq"
    sciq.mkdir(parents=True)
    (sciq / UNFINISHED).touch()  # a download that was broken off
    (sciq / "train.jsonl").write_text(json.dumps({}))
    with pytest.raises(ConfigError) as caught:
        check_datasets(["copa", "sciq", "piqa", "wic"], tmp_path)
    assert str(caught.value) == (
        f"--data_root {tmp_path}: lacks aps/super_glue (copa, wic), allenai/sciq (sciq), baber/piqa (piqa); on a "
        "machine with internet: python eval/prefetch.py --tasks copa sciq piqa wic --to DIR; then --data_root DIR"
    )
    (sciq / MARK).write_text("{}")
    check_datasets(["sciq"], tmp_path)


def test_a_copy_that_the_user_downloaded_is_taken_wherever_it_is(tmp_path: Path) -> None:
    """`hf download --local-dir` leaves .cache beside the files, and what it did not finish as *.incomplete in there."""
    root = tmp_path / ".cache/tasks"
    notes = root / "allenai/sciq/.cache/huggingface/download"
    notes.mkdir(parents=True)
    (root / "allenai/sciq/train.jsonl").write_text("{}")
    (notes / "train.jsonl.metadata").touch()
    check_datasets(["sciq"], root)
    (notes / "abc.incomplete").touch()
    with pytest.raises(ConfigError, match=r"lacks allenai/sciq \(sciq\)"):
        check_datasets(["sciq"], root)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_without_network_the_hubs_cache_is_looked_into(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    check_datasets(["sciq"], None)  # the network may have it
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=r"the cache of the Hugging Face hub: lacks allenai/sciq \(sciq\); on a mach"):
        check_datasets(["sciq"], None)
