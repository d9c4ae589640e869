"""What is written about the run configuration, made from its own definition: reference tables and JSON schemas.

    python -m doge_ds.config_reference

Rewrites the tables of docs/configuration.md between their marks, and ds_configs/schema/{proxy,base}.json for editors.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from doge_ds.config import BaseConfig, ProxyConfig, RunConfig
from doge_ds.config_sections import (
    METHODS,
    PRESETS,
    BaseTrainingConfig,
    DogeConfig,
    ProxyTrainingConfig,
    TrainingConfig,
)
from doge_ds.errors import ConfigError, DogeError, nearest, report

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = Path("docs/configuration.md")
SCHEMAS: dict[Path, type[RunConfig]] = {
    Path("ds_configs/schema/proxy.json"): ProxyConfig,
    Path("ds_configs/schema/base.json"): BaseConfig,
}
_TABLE = re.compile(r"(<!-- table ([\w.]+)[^>]*-->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> int:
    """Write all files; the exit status."""
    try:
        for path, text in reference_files(ROOT).items():
            (ROOT / path).parent.mkdir(exist_ok=True)
            (ROOT / path).write_text(text, encoding="utf-8")
            print(f"written: {path}")
    except DogeError as error:
        return report(error)
    return 0


def reference_files(root: Path) -> dict[Path, str]:
    """What the document and the schemas have to hold, by their paths below `root`; the document's prose stays as it is.

    Raises:
        ConfigError: the document cannot be read, or has not every table exactly once.
    """
    try:
        document = (root / DOCUMENT).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(DOCUMENT), f"cannot be read ({error.strerror})", "restore it from git") from None
    schemas = {path: json.dumps(input_schema(kind), indent=2) + "\n" for path, kind in SCHEMAS.items()}
    return {DOCUMENT: fill_tables(document, reference_tables()), **schemas}


def input_schema(kind: type[RunConfig]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of what may stand in a run configuration's file.

    That is more than the model behind it holds: `deepspeed` may be a path, and a preset sets what is left out.
    """
    schema = kind.model_json_schema(schema_generator=_WithoutTitles)
    deepspeed = schema["properties"]["deepspeed"]
    text = deepspeed.pop("description")
    schema["properties"]["deepspeed"] = {"anyOf": [{"type": "string"}, {"type": "object"}], "description": text}
    if "doge" in schema["properties"]:
        for name, section in METHODS.items():
            schema["properties"][name] = {"$ref": f"#/$defs/{section.__name__}"}
        filled = DogeConfig().model_dump(mode="json")
        for key, found in schema["$defs"]["DogeConfig"]["properties"].items():
            found["default"] = filled[key]
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


class _WithoutTitles(GenerateJsonSchema):
    """A title is the key with capital letters, and editors would show it before the description."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def reference_tables() -> dict[str, str]:
    """The tables of docs/configuration.md, by the names that stand in their marks."""
    proxy, base = input_schema(ProxyConfig), input_schema(BaseConfig)
    sections = proxy["$defs"]
    shared = TrainingConfig.model_fields
    return {
        "run": _table(proxy),
        "data": _table(sections["DataConfig"]),
        "training": _table(sections[ProxyTrainingConfig.__name__], [*shared]),
        "training.proxy": _table(sections[ProxyTrainingConfig.__name__], _own_fields(ProxyTrainingConfig)),
        "training.base": _table(base["$defs"][BaseTrainingConfig.__name__], _own_fields(BaseTrainingConfig)),
        **{name: _table(sections[section.__name__]) for name, section in METHODS.items()},
        "doge.selection": _table(sections["SelectionConfig"]),
        "base": _table(base, ["mixture"]),
        "mixture": _table(base["$defs"]["MixtureStage"]),
        "presets": _presets_table(),
    }


def fill_tables(document: str, tables: Mapping[str, str]) -> str:
    """The document with its tables replaced. Raises ConfigError where it has not each exactly once."""
    names = [match[2] for match in _TABLE.finditer(document)]
    for name in names:
        if name not in tables:
            raise ConfigError(f"{DOCUMENT}: table {name}", "is unknown", nearest(name, tables))
    for name in tables:
        if names.count(name) != 1:
            problem = f"is marked {names.count(name)} times, not once"
            raise ConfigError(f"{DOCUMENT}: table {name}", problem, f"write <!-- table {name} --><!-- end of table -->")
    return _TABLE.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", document)


def _own_fields(kind: type[TrainingConfig]) -> list[str]:
    return [key for key in kind.model_fields if key not in TrainingConfig.model_fields]


def _table(section: Mapping[str, Any], keys: list[str] | None = None) -> str:
    """One row for each key, all of them or those named."""
    rows = ["| key | type | default | range | what it does |", "|---|---|---|---|---|"]
    for key in keys or section["properties"]:
        found = section["properties"][key]
        default = f"`{_json(found['default'])}`" if "default" in found else _without_default(section, key)
        cells = [f"`{key}`", _type(found), default, _range(found), found.get("description", "The section below.")]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def _without_default(section: Mapping[str, Any], key: str) -> str:
    return "required" if key in section["required"] else "its keys' defaults"


def _presets_table() -> str:
    """One row for each key that presets set."""
    keys = next(iter(PRESETS.values()))
    rows = [f"| key | {' | '.join(f'`{name}`' for name in PRESETS)} |", f"|---|{'---|' * len(PRESETS)}"]
    rows += [f"| `{key}` | {' | '.join(f'`{_json(preset[key])}`' for preset in PRESETS.values())} |" for key in keys]
    return "\n".join(rows)


def _json(value: Any) -> str:
    return json.dumps(value)


def _type(found: Mapping[str, Any]) -> str:
    """A JSON type in words."""
    if "anyOf" in found:
        return " or ".join(map(_type, found["anyOf"]))
    if "enum" in found:
        return ", ".join(f"`{_json(value)}`" for value in found["enum"])
    if "prefixItems" in found:
        return f"list of {len(found['prefixItems'])} {found['prefixItems'][0]['type']}s"
    if found.get("type") == "array":
        return f"list of {found['items'].get('type', 'object')}s"
    return str(found.get("type", "object"))  # a reference stands for a section


def _range(found: Mapping[str, Any]) -> str:
    """The limits of a number or of a list's length in words; empty where there is none."""
    if "anyOf" in found:
        return ", ".join(filter(None, map(_range, found["anyOf"])))
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "exclusiveMaximum": "below {}",
        "maximum": "at most {}",
        "minItems": "at least {} of them" if "prefixItems" not in found else "",
    }
    limits = [word.format(_number(found[key])) for key, word in words.items() if word and key in found]
    return ", ".join(limits)


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
