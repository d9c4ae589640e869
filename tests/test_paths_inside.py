"""What a manifest, a recipe, a mixture, a dataset or a model names stays in its folder. docs/security.md says it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.config import BaseConfig, load_config
from doge_ds.data.reading.hub import refuse_files_elsewhere
from doge_ds.data.reading.recipes import Source, read_recipe
from doge_ds.data.tokens import TokenStore
from doge_ds.data.verify import find_faults
from doge_ds.errors import DogeError, ModelError, RunError, StoreError
from doge_ds.json_files import is_inside, write_json
from doge_ds.mixture import Mixture
from doge_ds.mixture_schedule import chosen_schedule
from doge_ds.report import write_report
from tests.outside import evaluate, prepared, read, refused, small_model, start_from
from tests.reporting.run_directories import make_proxy
from tests.stores import make_store

TEXT = "One line of text, and no more than that.\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("model-00001.safetensors", True),
        ("part/a.arrow", True),
        ("a..b", True),
        ("../a", False),
        ("part/../../a", False),
        ("/etc/passwd", False),
        ("..", False),
        ("", False),
        ("a\0", False),
        (None, False),
        (1, False),
    ],
)
def test_names_inside_of_a_folder(name: object, is_one: bool) -> None:
    assert is_inside(name) == is_one


def test_an_index_of_weights_stays_in_its_folder(model: Path, tmp_path: Path) -> None:
    weights = shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    with torch.device("meta"):
        keys = list(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).state_dict())
    for name in ("../elsewhere.safetensors", str(weights), 7):
        write_json(model / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict.fromkeys(keys, name)})
        for act in (evaluate, start_from):
            said = refused(ModelError, lambda act=act: act(model))
            assert f"model.safetensors.index.json names {name!r}, which is no file of the folder" in said
    (model / "model.safetensors.index.json").write_text("[]")
    refused(DogeError, lambda: evaluate(model))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"a": np.arange(1, 33) % 8}).path


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../a", "/etc", "a/b", "a\\b", "a\0", "a\n", ".hidden", "tokenizer", "-x"]
)
def test_a_manifest_names_folders_of_its_store_alone(store: Path, name: str) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["domains"] = {name: manifest["domains"]["a"]}
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert "is no domain name" in refused(StoreError, lambda: TokenStore(store))


def test_links_do_not_lead_out_of_a_store(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)  # to the whole store: that is where the user pointed
    assert TokenStore(tmp_path / "link").domains == ["a"]
    for inside in ("a/train.bin", "a", "tokenizer/about.txt", "tokenizer"):
        elsewhere = tmp_path / "elsewhere"
        shutil.move(store / inside, elsewhere)
        (store / inside).symlink_to(elsewhere)
        with pytest.raises(DogeError, match="is a link out of the store"):
            TokenStore(store)
        assert any("is a link out of the store" in str(fault) for fault in find_faults(store))
        (store / inside).unlink()
        shutil.move(elsewhere, store / inside)
    assert TokenStore(store)


def test_a_dataset_reads_its_own_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "own.jsonl").write_text('{"text": "own"}\n')
    source = Source(dataset=str(folder), domain="x")
    for named in ("../secret.jsonl", str(tmp_path / "secret.jsonl")):
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n")
        assert "secret.jsonl among its files, which lies elsewhere" in refused(StoreError, lambda: read(source))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: own.jsonl\n---\n")
    assert read(source) == [("x", "own")]


@pytest.mark.parametrize("file", ["/etc/passwd", "file:///etc/passwd", "zip://a.jsonl::/home/me/a.zip"])
def test_a_dataset_on_the_hub_reads_nothing_of_this_machine(file: str) -> None:
    source = Source(dataset="org/name", domain="x")
    refused(StoreError, lambda: refuse_files_elsewhere(source, ["hf://datasets/org/name@main/a.jsonl", file]))
    refuse_files_elsewhere(
        source, ["hf://datasets/org/name@main/a.jsonl", "zip://a::hf://datasets/org/name@main/b.zip"]
    )


def test_a_saved_dataset_reads_its_own_folder_alone(tmp_path: Path) -> None:
    for name in ("ours", "others"):
        Dataset.from_dict({"text": [TEXT, name]}).save_to_disk(str(tmp_path / name))
    state = json.loads((tmp_path / "ours/state.json").read_text())
    for place in (tmp_path / "others", Path("../others")):
        state["_data_files"] = [{"filename": str(place / "data-00000-of-00001.arrow")}]
        (tmp_path / "ours/state.json").write_text(json.dumps(state))
        assert "among its files, which lies elsewhere" in prepared(tmp_path, f"--input=x={tmp_path / 'ours'}")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "tokenizer", ".."])
def test_what_text_calls_its_domain_stays_in_the_store(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    lines = [json.dumps({"text": f"{TEXT} {number}", "set": name if number == 7 else "fine"}) for number in range(9)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    recipes = [
        {"dataset": "dataset", "domain_field": "set"},
        {"dataset": "dataset", "domain_field": "set", "domains": {name: name, "fine": "fine"}},
        {"files": ["dataset"], "domain": name},
    ]
    before = sorted(tmp_path.rglob("*"))
    for recipe in recipes:
        write_json(tmp_path / "recipe.json", {"sources": [recipe]})
        assert f"{name!r} cannot name a domain" in prepared(tmp_path, str(tmp_path / "recipe.json"))
        shutil.rmtree(tmp_path / "store.parts", ignore_errors=True)
    assert sorted({*tmp_path.rglob("*")} - {*before}) == [tmp_path / "recipe.json"]


def test_a_recipe_may_read_whatever_its_user_may(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    write_json(tmp_path / "recipes/r.json", {"sources": [{"files": ["/data/a.txt", "../b.txt"], "domain": "x"}]})
    (source,) = read_recipe(tmp_path / "recipes/r.json").sources
    assert source.files == ["/data/a.txt", f"{tmp_path}/recipes/../b.txt"]


def test_a_schedule_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for folder in (tmp_path, tmp_path / "given"):
        Mixture(domains={"a": 0.75, "b": 0.25}).write(folder / "m.json")
    config = {
        "model": {"model_type": "gpt2"},
        "data": {"path": "store", "sequence_length": 8},
        "training": {"steps": 10, "global_batch_size": 4, "learning_rate": 0.1},
        "deepspeed": {},
    }

    def stages(mixture: object) -> Any:
        write_json(tmp_path / "given/s.json", {"version": 1, "schedule": [{"from_step": 0, "mixture": mixture}]})
        write_json(tmp_path / "run.json", config)
        return chosen_schedule(
            load_config(BaseConfig, tmp_path / "run.json"),
            str(tmp_path / "given/s.json"),
            {"a": 1, "b": 1},
            tmp_path / "run.json",
        )

    for name in ("../m.json", str(tmp_path / "m.json")):
        assert f"names {name!r}, which is not in its folder" in refused(DogeError, lambda name=name: stages(name))
    assert stages("m.json")[0].mixture.domains == {"a": 0.75, "b": 0.25}
    assert stages("uniform")[0].mixture.domains == {"a": 0.5, "b": 0.5}


def test_a_report_shows_nothing_but_files_of_its_runs(tmp_path: Path) -> None:
    """A run writes its DeepSpeed settings themselves; a path is what somebody else would like to see published."""
    run = make_proxy(tmp_path / "proxy")
    values = json.loads((run / "config.json").read_text())
    write_json(tmp_path / "secret.json", {"password": "SECRET"})
    for path in ("../secret.json", str(tmp_path / "secret.json")):
        write_json(run / "config.json", {**values, "deepspeed": path})
        said = refused(RunError, lambda: write_report([run], tmp_path / "report.html"))
        assert f"config.json: deepspeed: is a path, {path!r}" in said
    assert not (tmp_path / "report.html").exists()
    write_json(run / "config.json", values)
    write_report([run], tmp_path / "report.html")
