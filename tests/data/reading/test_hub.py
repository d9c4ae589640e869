"""Recipes and datasets: the real loading code on local datasets of the schemas that the hub has."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from doge_ds.data.reading.hub import dataset_units
from doge_ds.data.reading.inputs import list_inputs
from doge_ds.data.reading.recipes import Source, read_recipe
from doge_ds.errors import ConfigError, DogeError, StoreError

ROOT = Path(__file__).resolve().parents[3]
SETS = {"RedPajamaC4": "c4", "RedPajamaBook": "book", "RedPajamaArXiv": "arxiv"}


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """As SlimPajama has them."""
    names = list(SETS)
    return [
        {"text": f"text {n} ☃\n", "meta": {"redpajama_set_name": names[n % 3]}} for n in range(first, first + count)
    ]


def write_lines(file: Path, found: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in found).encode()
    file.write_bytes(zstandard.compress(lines))


@pytest.fixture(params=["jsonl.zst", "parquet"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """SlimPajama's layout: three files of the split train, in folders, and one of another split."""
    folder = tmp_path / "SlimPajama"
    files = {"train/chunk1/a": rows(0, 7), "train/chunk1/b": rows(7, 5), "train/chunk2/a": rows(12, 4)}
    if request.param == "jsonl.zst":
        for name, found in {**files, "validation/chunk1/a": rows(90, 2)}.items():
            write_lines(folder / f"{name}.jsonl.zst", found)
    else:
        names = ("train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "validation-00000-of-00001")
        (folder / "data").mkdir(parents=True)
        for name, found in zip(names, [*files.values(), rows(90, 2)], strict=True):
            parquet.write_table(
                pa.Table.from_pylist([{**row, "id": n} for n, row in enumerate(found)]), folder / f"data/{name}.parquet"
            )
    return folder


def source(dataset: Path, **changes: Any) -> Source:
    values = {"dataset": str(dataset), "domain_field": "meta.redpajama_set_name", "domains": SETS, **changes}
    return Source.model_validate({key: value for key, value in values.items() if value is not None})


def read_all(wanted: Source) -> list[tuple[str, str]]:
    return [document for unit in dataset_units(wanted) for document in unit.read()]


def test_every_file_is_a_unit_and_rows_name_their_domain(dataset: Path) -> None:
    units = dataset_units(source(dataset))
    assert len(units) == 3
    wanted = [(SETS[row["meta"]["redpajama_set_name"]], row["text"]) for row in rows(0, 16)]
    assert [document for unit in units for document in unit.read()] == wanted
    assert list(units[1].read()) == list(units[1].read()) == wanted[7:12]
    assert units[1].name == f"{dataset} train, file 2 of 3"


def test_another_split_and_one_domain(dataset: Path) -> None:
    units = dataset_units(source(dataset, split="validation", domain="all", domain_field=None, domains=None))
    assert [document for unit in units for document in unit.read()] == [("all", row["text"]) for row in rows(90, 2)]


def test_a_changed_file_is_another_unit(dataset: Path) -> None:
    before = [unit.identity for unit in dataset_units(source(dataset))]
    assert [unit.identity for unit in dataset_units(source(dataset))] == before
    file = (
        sorted(dataset.rglob("*train*/**/*.zst") or dataset.rglob("train-*"))[-1]
        if list(dataset.rglob("*.zst"))
        else sorted(dataset.rglob("train-*"))[-1]
    )
    file.write_bytes(file.read_bytes())
    assert [unit.identity for unit in dataset_units(source(dataset))] != before


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (
            {"domains": {"RedPajamaC4": "c4"}},
            ConfigError,
            "file 1 of 3, row 2: the recipe has no domain for 'RedPajamaBook'; add it",
        ),
        (
            {"domains": {**SETS, "RedPajamaC4": "c/4"}},
            ConfigError,
            "'c/4' cannot name a domain; give it a name in domains",
        ),
        ({"domain_field": "meta.set"}, StoreError, "has no field 'meta.set', only"),
        ({"domain_field": "meta"}, StoreError, "field 'meta' is an object, not a string"),
        ({"text_field": "content"}, StoreError, "has no field 'content', only"),
        ({"split": "test"}, StoreError, "SlimPajama test: cannot be opened (ValueError: Bad split: test"),
    ],
)
def test_what_a_dataset_does_not_have(dataset: Path, changes: Any, kind: type[DogeError], words: str) -> None:
    with pytest.raises(kind) as caught:
        read_all(source(dataset, **changes))
    assert words in str(caught.value)


def test_a_file_cut_short(tmp_path: Path) -> None:
    write_lines(tmp_path / "d/train/a.jsonl.zst", rows(0, 100_000))
    whole = (tmp_path / "d/train/a.jsonl.zst").read_bytes()
    (tmp_path / "d/train/a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"d train(, file 1 of 1)?: cannot be (read|opened)"):
        read_all(source(tmp_path / "d"))


def test_a_dataset_that_is_not_there_says_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the hub is not asked, wherever this runs
    with pytest.raises(StoreError) as caught:
        dataset_units(Source(dataset="nobody/nothing_of_the_kind", domain="a"))
    assert "`hf download nobody/nothing_of_the_kind --repo-type dataset --local-dir nothing_of_the_kind`" in str(
        caught.value
    )


# Recipes.


@pytest.mark.parametrize("recipe", sorted((ROOT / "ds_configs/data").glob("*.json")), ids=lambda path: path.stem)
def test_recipes_that_ship_are_valid(recipe: Path) -> None:
    assert read_recipe(recipe).sources


def test_slimpajamas_domains_are_those_of_the_published_mixtures() -> None:
    for name in ("slimpajama_627b", "slimpajama_6b"):
        domains = read_recipe(ROOT / f"ds_configs/data/{name}.json").sources[0].domains or {}
        wanted = {"arxiv", "book", "c4", "commoncrawl", "github", "stackexchange", "wikipedia"}
        assert set(domains.values()) == wanted


def test_a_recipe_lists_files_and_datasets_beside_it(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"body": "a note"}\n')
    recipe = {
        "comment": "for readers",
        "sources": [
            {
                "dataset": "SlimPajama",
                "domain_field": "meta.redpajama_set_name",
                "domains": SETS,
                "comment": ["a", "b"],
            },
            {"files": ["notes.jsonl"], "domain": "notes", "text_field": "body"},
            {"dataset": "SlimPajama", "domain_field": "meta.redpajama_set_name", "split": "validation"},
        ],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    listing = list_inputs(read_recipe(tmp_path / "recipe.json"), "text")
    assert list(listing.sources) == ["c4", "book", "arxiv", "notes"]
    assert listing.undeclared == [f"{dataset} validation"]
    documents = [document for unit in listing.units for document in unit.read()]
    assert documents[16:] == [
        ("notes", "a note"),
        ("RedPajamaC4", rows(90, 1)[0]["text"]),
        ("RedPajamaBook", rows(91, 1)[0]["text"]),
    ]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"sources": []}, "recipe.json: sources: [] cannot stand; it should have at least 1 item"),
        ({"source": []}, "recipe.json: source: unknown key; did you mean 'sources'?"),
        ({"sources": [{"datset": "x", "domain": "a"}]}, "sources.0.datset: unknown key; did you mean 'dataset'?"),
        ({"sources": [{"dataset": "x", "files": ["y"], "domain": "a"}]}, "needs dataset or files, one of the two"),
        ({"sources": [{"dataset": "x"}]}, "needs domain or domain_field, one of the two"),
        ({"sources": [{"files": ["x"], "domain_field": "a"}]}, "files make one domain"),
        ({"sources": [{"dataset": "x", "domain": "a", "domains": {"b": "c"}}]}, "domains are values of domain_field"),
        ({"sources": [{"dataset": 5, "domain": "a"}]}, "sources.0.dataset: 5 cannot stand; it should be a valid"),
    ],
)
def test_mistakes_in_recipes(recipe: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "recipe.json")
    assert words in str(caught.value)


def test_names_that_no_domain_can_have(tmp_path: Path) -> None:
    for name in ("../a", "a/b", "", ".a", "tokenizer"):
        with pytest.raises(ConfigError, match="cannot name a domain"):
            list_inputs({name: [tmp_path]}, "text")
