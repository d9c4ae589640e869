"""What is written about the run configuration is what the programs check."""

import json
from pathlib import Path

import jsonschema
import pytest

from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.config_reference import DOCUMENT, SCHEMAS, fill_tables, input_schema, reference_files, reference_tables
from doge_ds.config_sections import PRESETS, DogeConfig
from doge_ds.errors import ConfigError
from doge_ds.training.monitor import MONITORS

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / "ds_configs/runs").glob("*.json"))
PROXY = {
    "model": {"model_type": "gpt2"},
    "data": {"path": "store", "sequence_length": 8},
    "training": {"steps": 10, "sequences_per_domain": 4, "learning_rate": 0.1},
    "deepspeed": {"zero_optimization": {"stage": 2}},
}


def validator(kind: type[ProxyConfig] | type[BaseConfig]) -> jsonschema.Draft202012Validator:
    schema = input_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def kind_of(path: Path) -> type[ProxyConfig] | type[BaseConfig]:
    return ProxyConfig if "proxy" in path.stem else BaseConfig


@pytest.mark.parametrize("path", [DOCUMENT, *SCHEMAS], ids=str)
def test_what_is_committed_is_up_to_date(path: Path) -> None:
    is_up_to_date = (ROOT / path).read_text() == reference_files(ROOT)[path]
    assert is_up_to_date, f"{path} is not what doge_ds/config.py says: run `python -m doge_ds.config_reference`"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_configuration_that_ships_fits_the_schema(path: Path) -> None:
    validator(kind_of(path)).validate(json.loads(path.read_text()))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_resolved_configuration_fits_the_schema(path: Path) -> None:
    resolved = load_config(kind_of(path), path)
    validator(kind_of(path)).validate(resolved.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training", "learning_rat", 1, "'learning_rat' was unexpected"),
        ("training", "steps", "10", "'10' is not of type 'integer'"),
        ("training", "steps", 0, "0 is less than the minimum of 1"),
        ("training", "learning_rate", 0, "0 is less than or equal to the minimum of 0"),
        ("training", "global_batch_size", 8, "'global_batch_size' was unexpected"),
        ("doge", "smoothing", 1, "1 is greater than or equal to the maximum of 1"),
        ("doge", "target", "everything", "'everything' is not valid under any of the given schemas"),
        ("doge", "clip", [0, 1, 2], "[0, 1, 2] is not valid under any of the given schemas"),
    ],
)
def test_schema_and_program_refuse_the_same(
    tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    values = {**PROXY, section: {**PROXY.get(section, {}), key: value}}
    (mistake,) = validator(ProxyConfig).iter_errors(values)
    assert message in mistake.message
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=key):
        load_config(ProxyConfig, tmp_path / "run.json")


def test_deepspeed_may_be_a_path_or_an_object() -> None:
    for value, is_valid in (("../zero2.json", True), ({"bf16": {"enabled": True}}, True), (2, False), (None, False)):
        assert validator(ProxyConfig).is_valid({**PROXY, "deepspeed": value}) is is_valid
    assert not validator(ProxyConfig).is_valid({key: PROXY[key] for key in PROXY if key != "deepspeed"})


def test_defaults_are_those_that_a_short_file_gets() -> None:
    resolved = ProxyConfig.model_validate(PROXY).model_dump(mode="json")
    schema = input_schema(ProxyConfig)
    sections = {"data": "DataConfig", "training": "ProxyTrainingConfig", "doge": "DogeConfig"}
    sections["doremi"] = "DoremiConfig"
    assert set(schema["$defs"]) == {*sections.values(), "SelectionConfig"}
    for section, definition in sections.items():
        for key, found in schema["$defs"][definition]["properties"].items():
            if "default" in found:
                assert found["default"] == resolved[section][key], key
            else:
                assert key in schema["$defs"][definition]["required"]
    assert DogeConfig().preset == "official"
    for key, value in PRESETS["official"].items():
        filled = schema["$defs"]["DogeConfig"]["properties"][key]["default"]
        assert filled == json.loads(json.dumps(value))


def test_every_key_has_a_row_that_explains_it() -> None:
    tables = reference_tables()
    rows = [row.split(" | ") for name in tables if name != "presets" for row in tables[name].splitlines()[2:]]
    keys = [row[0].removeprefix("| ").strip("`") for row in rows]
    for kind in (ProxyConfig, BaseConfig):
        for section, field in kind.model_fields.items():
            assert section in keys
            for key in getattr(field.annotation, "model_fields", {}):
                assert key in keys
    for row in rows:
        assert len(row) == 5, row
        assert len(row[4].removesuffix(" |")) > 10, row
    (seed,) = (row for row in tables["training"].splitlines() if row.startswith("| `seed` |"))
    assert seed.split(" | ")[1:4] == ["integer", "`0`", "at least 0, below 2^63"]


def test_what_a_table_replaces_ends_at_its_mark() -> None:
    tables = {"one": "| 1 |", "two": "| 2 |"}
    document = (
        "a\n<!-- table one (why) -->\nold\n<!-- end of table -->\nb\n<!-- table two -->\n<!-- end of table -->\nc\n"
    )
    filled = fill_tables(document, tables)
    assert filled == document.replace("old", "| 1 |").replace("two -->\n", "two -->\n| 2 |\n")
    assert fill_tables(filled, tables) == filled
    with pytest.raises(ConfigError, match="table two: is marked 0 times"):
        fill_tables(document.split("b\n")[0], tables)
    with pytest.raises(ConfigError, match="table one: is marked 2 times"):
        fill_tables(document + document, tables)
    with pytest.raises(ConfigError, match="table tow: is unknown; did you mean 'two'"):
        fill_tables(document.replace("table two", "table tow"), tables)


def test_a_missing_document_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"docs/configuration.md: cannot be read \(No such file"):
        reference_files(tmp_path)


def test_what_the_deepspeed_files_set_is_explained() -> None:
    """Their sections, the monitors, and every configuration file that ships."""
    document = (ROOT / DOCUMENT).read_text()
    files = sorted((ROOT / "ds_configs").glob("*.json"))
    assert len(files) >= 6
    for file in files:
        assert f"[{file.name}](../ds_configs/{file.name})" in document
        for key in json.loads(file.read_text()):
            assert f"`{key}`" in document.split("## The DeepSpeed file")[1], f"{key} of {file.name}"
    for monitor in MONITORS:
        assert f"`{monitor}`" in document
