"""Run configurations: what is accepted, what is filled in, and the one line that each mistake gets."""

import json
from pathlib import Path

import pytest

from doge_ds.config import BaseConfig, ProxyConfig, config_hash, for_publication, load_config
from doge_ds.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PROXY = {
    "model": {"model_type": "gpt2"},
    "data": {"path": "store", "sequence_length": 8},
    "training": {"steps": 10, "sequences_per_domain": 4, "learning_rate": 0.1},
    "deepspeed": {"zero_optimization": {"stage": 2}},
}


def write(folder: Path, values: object) -> Path:
    path = folder / "run.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_preset_fills_what_the_file_leaves_open(tmp_path: Path) -> None:
    config = load_config(ProxyConfig, write(tmp_path, {**PROXY, "doge": {"preset": "official", "clip": [0, 2]}}))
    assert config.doge.normalize == "mean_gradient_norm"
    assert config.doge.clip_domain_gradients == 1.0
    assert config.doge.clip == (0, 2)
    paper = load_config(ProxyConfig, tmp_path / "run.json", ["doge.preset=paper", "doge.clip=null"]).doge
    assert (paper.normalize, paper.clip_domain_gradients, paper.clip) == ("none", None, None)


def test_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(ProxyConfig, write(tmp_path, {**PROXY, "doge": {"target": ["x"], "preset": "paper"}}))
    again = load_config(ProxyConfig, write(tmp_path, config.model_dump(mode="json")))
    assert again == config


def test_the_hash_changes_with_any_key_and_a_resolved_configuration_keeps_it(tmp_path: Path) -> None:
    path = write(tmp_path, {**PROXY, "doge": {"target": ["\N{GREEK SMALL LETTER ALPHA}"], "mu": 1e-7}})
    config = load_config(ProxyConfig, path)
    resolved = write(tmp_path, config.model_dump(mode="json"))
    assert config_hash(load_config(ProxyConfig, resolved)) == config_hash(config)
    assert config_hash(json.loads(resolved.read_text())) == config_hash(config)
    assert config_hash(load_config(ProxyConfig, resolved, ["training.seed=1"])) != config_hash(config)


def test_settings_replace_and_add(tmp_path: Path) -> None:
    settings = ["training.steps=25", 'doge.target=["b", "c"]', "training.learning_rate=1", "data.path=else/where"]
    config = load_config(ProxyConfig, write(tmp_path, PROXY), settings)
    assert config.training.steps == 25
    assert config.doge.target == ["b", "c"]
    assert config.training.learning_rate == 1.0
    assert config.data.path == "else/where"


def test_deepspeed_path_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}, "wall_clock_breakdown": true}')
    (tmp_path / "runs").mkdir()
    config = load_config(ProxyConfig, write(tmp_path / "runs", {**PROXY, "deepspeed": "../zero.json"}))
    assert config.deepspeed["wall_clock_breakdown"] is True
    settings = ["deepspeed.bf16.enabled=true", "deepspeed.wall_clock_breakdown=false"]
    changed_by_hand = load_config(ProxyConfig, tmp_path / "runs/run.json", settings).deepspeed
    assert changed_by_hand == {
        "zero_optimization": {"stage": 2},
        "wall_clock_breakdown": False,
        "bf16": {"enabled": True},
    }


def changed(section: str, key: str, value: object) -> dict:
    return {**PROXY, section: {**PROXY.get(section, {}), key: value}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed("training", "learning_rat", 1), "training.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ({**PROXY, "trainin": {}}, "trainin: unknown key; did you mean 'training'?"),
        (changed("training", "steps", -5), "training.steps: -5 cannot stand; it should be greater than or equal to 1"),
        (changed("training", "steps", "10"), 'training.steps: "10" cannot stand; it should be a valid integer'),
        (
            changed("training", "eval_every", 0),
            "training.eval_every: 0 cannot stand; it should be greater than or equal",
        ),
        (changed("training", "eval_every", -1), "training.eval_every: -1 cannot stand"),
        (changed("training", "eval_windows", 0), "training.eval_windows: 0 cannot stand"),
        (changed("training", "eval_windows", 2.5), "training.eval_windows: 2.5 cannot stand"),
        (changed("training", "steps", 10.5), "training.steps: 10.5 cannot stand; it should be a valid integer"),
        (
            changed("training", "learning_rate", 0),
            "training.learning_rate: 0 cannot stand; it should be greater than 0",
        ),
        (changed("training", "warmup_steps", 10), "training: warmup_steps 10 leaves none of 10 steps"),
        (changed("training", "min_learning_rate", 0.5), "min_learning_rate 0.5 is above learning_rate 0.1"),
        (
            changed("doge", "target", "everything"),
            "doge.target: \"everything\" cannot stand; it should be 'all', 'others'",
        ),
        (changed("doge", "target", []), "doge: target [] must name at least one domain"),
        (changed("doge", "target", ["a", "a"]), "none twice"),
        (
            changed("doge", "preset", "offical"),
            "doge.preset: \"offical\" cannot stand; it should be 'official' or 'paper'",
        ),
        (changed("doge", "clip", [5, 0]), "clip [5.0, 0.0] is no range"),
        (changed("doge", "mu", 0), "doge.mu: 0 cannot stand; it should be greater than 0"),
        (changed("doge", "selection", {"steps": 3, "tensors": 0}), "doge.selection: tensors 0 keeps none"),
        (changed("doge", "selection", {"steps": 3}), "doge.selection.tensors: is missing"),
        (
            changed("doge", "selection", {"steps": 3, "tensor": 1}),
            "doge.selection.tensor: unknown key; did you mean 'tensors'?",
        ),
        (changed("doge", "selection", {"steps": 0, "tensors": 1}), "doge.selection.steps: 0 cannot stand"),
        (changed("doge", "selection", {"steps": 10, "tensors": 3}), "selection.steps 10 leaves none of 10 steps"),
        (changed("doge", "update_every", 0), "doge.update_every: 0 cannot stand"),
        (changed("doge", "absent_score_decay", 1.5), "doge.absent_score_decay: 1.5 cannot stand"),
        (changed("doge", "gradient_store", "disk"), 'doge.gradient_store: "disk" cannot stand'),
        (
            {**PROXY, "doge": {"target": "others", "domains_per_step": 1}},
            "domains_per_step 1 leaves no pairs for target 'others'",
        ),
        (changed("data", "sequence_length", 1), "data.sequence_length: 1 cannot stand"),
        ({key: value for key, value in PROXY.items() if key != "data"}, "data: is missing; add it"),
        ("[1, 2]", "holds no JSON object"),
        ('{\n  "model": {,\n}', "run.json, line 2, column 13: is no JSON"),
        ({**PROXY, "deepspeed": "nowhere.json"}, "nowhere.json: cannot be read (No such file or directory)"),
    ],
)
def test_each_mistake_gets_one_line(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ProxyConfig, write(tmp_path, values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "setting", ["training.steps", "=3", "training..steps=3", "training.steps.deep=1", "data.path=\udcff", "\ud800=1"]
)
def test_a_setting_that_is_none_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(ProxyConfig, write(tmp_path, PROXY), [setting])


def test_each_program_refuses_the_other_ones_keys(tmp_path: Path) -> None:
    base = {"steps": 10, "global_batch_size": 8, "learning_rate": 0.1}
    with pytest.raises(ConfigError, match=r"doge: unknown key"):
        load_config(BaseConfig, write(tmp_path, {**PROXY, "training": base, "doge": {}}))
    with pytest.raises(ConfigError, match=r"training.global_batch_size: unknown key"):
        load_config(ProxyConfig, write(tmp_path, changed("training", "global_batch_size", 8)))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(ProxyConfig, tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"model": "\xff"}')
    with pytest.raises(ConfigError, match="no UTF-8"):
        load_config(ProxyConfig, tmp_path / "latin.json")


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs/runs").glob("*.json")), ids=lambda path: path.stem)
def test_every_configuration_that_ships_is_valid(path: Path) -> None:
    load_config(ProxyConfig if "doge" in json.loads(path.read_text()) else BaseConfig, path)


def test_what_may_hold_keys_to_accounts_is_left_out_of_what_is_published() -> None:
    values = {"model": {"n_layer": 2}, "deepspeed": {"comet": {"api_key": "SECRET"}, "wandb": {}, "bf16": {}}}
    assert for_publication(values) == {"model": {"n_layer": 2}, "deepspeed": {"bf16": {}}}
    assert "comet" in values["deepspeed"]
