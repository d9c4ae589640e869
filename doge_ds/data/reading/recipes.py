"""Recipes: JSON files that say where the text of a store comes from; those that ship are in ds_configs/data/.

    {"sources": [{"dataset": "cerebras/SlimPajama-627B", "split": "train", "domain_field": "meta.redpajama_set_name",
                  "domains": {"RedPajamaC4": "c4", "RedPajamaBook": "book"}},
                 {"files": ["notes/", "more.jsonl.zst"], "domain": "notes"}],
     "tokenizer": "gpt2", "valid_tokens": 10000000, "deduplicate": true}

`comment` may stand anywhere, a string or a list of strings.
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from doge_ds.config_mistakes import first_mistake
from doge_ds.json_files import read_json_object


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    comment: str | list[str] = Field(default="", description="For readers.")


class Source(_Strict):
    """A Hugging Face dataset, or files and folders."""

    dataset: str | None = Field(default=None, description="Name on the Hugging Face hub, or a folder with its files.")
    configuration: str | None = Field(default=None, description="The dataset's configuration, where it has several.")
    split: str = Field(default="train", description="The dataset's split.")
    revision: str | None = Field(default=None, description="Commit or tag of the dataset; by default its newest.")
    files: list[str] | None = Field(
        default=None, min_length=1, description="Files and folders, as --input takes them; relative to the recipe."
    )
    text_field: str = Field(default="text", description="Field of the text; a.b: b inside a.")
    domain: str | None = Field(default=None, description="The domain of all documents.")
    domain_field: str | None = Field(default=None, description="Field whose value is the domain; a.b: b inside a.")
    domains: dict[str, str] | None = Field(
        default=None, min_length=1, description="What values of domain_field are called; another value is an error."
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.dataset is None) == (self.files is None):
            raise ValueError("needs dataset or files, one of the two")
        if (self.domain is None) == (self.domain_field is None):
            raise ValueError("needs domain or domain_field, one of the two")
        if self.files is not None and self.domain_field is not None:
            raise ValueError("files make one domain; give the folder as dataset to use domain_field")
        if self.domains is not None and self.domain_field is None:
            raise ValueError("domains are values of domain_field, which is missing")
        return self


class Recipe(_Strict):
    """What `doge-ds prepare RECIPE` reads. What stands on the command line replaces what stands here."""

    sources: list[Source] = Field(min_length=1)
    tokenizer: str | None = Field(default=None, description="As --tokenizer.")
    valid_fraction: float | None = Field(default=None, description="As --valid_fraction.")
    valid_documents: int | None = Field(default=None, description="As --valid_documents.")
    valid_tokens: int | None = Field(default=None, description="As --valid_tokens.")
    deduplicate: bool = Field(default=False, description="As --deduplicate.")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; its files are taken relative to it.

    Raises:
        ConfigError: no such file, no JSON, an unknown key (with the nearest valid one), or a value of the wrong kind.
    """
    values = read_json_object(path)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise first_mistake(Recipe, str(path), error, remedy="see ds_configs/data/template.json") from None
    return recipe.model_copy(update={"sources": [_located(source, path.parent) for source in recipe.sources]})


def _located(source: Source, folder: Path) -> Source:
    if source.files is not None:
        return source.model_copy(update={"files": [str(folder / file) for file in source.files]})
    beside = folder / str(source.dataset)
    return source.model_copy(update={"dataset": str(beside)}) if beside.is_dir() else source
