"""Inputs: what the user named, files, datasets, or this installation, as units of named domains."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from doge_ds.data.reading.environment import environment_documents
from doge_ds.data.reading.hub import called, dataset_units
from doge_ds.data.reading.recipes import Recipe
from doge_ds.data.reading.sources import Inputs, TextFiles
from doge_ds.data.reading.units import Document, Unit
from doge_ds.data.tokens import DOMAIN_NAME_RULE, is_domain_name
from doge_ds.errors import ConfigError


@dataclass
class Listing:
    """All of the input.

    Attributes:
        units: in the order of the input.
        sources: for each domain that is known before the text is read, where it comes from, as the user named it.
        undeclared: datasets whose documents name their domains themselves.
        built_from: for the manifest.
    """

    units: list[Unit] = field(default_factory=list)
    sources: dict[str, list[str]] = field(default_factory=dict)
    undeclared: list[str] = field(default_factory=list)
    built_from: dict[str, Any] = field(default_factory=dict)

    def add(self, domain: str, source: str) -> None:
        """Note that documents of a domain come from there."""
        check_domain_name(domain)
        self.sources.setdefault(domain, []).append(source)


def check_domain_name(name: str) -> None:
    """Raises ConfigError where no domain can be called so."""
    if not is_domain_name(name):
        raise ConfigError("--input", f"{name!r} cannot name a domain", DOMAIN_NAME_RULE)


def list_inputs(inputs: Inputs | Recipe, text_field: str) -> Listing:
    """List the units; notes on what is passed over go to stderr.

    Raises:
        ConfigError: a name that no domain can have.
        StoreError: a path or a dataset that is missing, of another type or empty.
    """
    if isinstance(inputs, Recipe):
        return _of_recipe(inputs)
    if isinstance(inputs, str):
        return _of_environment()
    listing = Listing(built_from={"inputs": {name: list(map(str, paths)) for name, paths in inputs.items()}})
    listing.built_from["text_field"] = text_field
    for name, paths in inputs.items():
        for path in paths:
            listing.add(name, str(path))
    for name, paths in inputs.items():
        _add_files(listing, name, paths, text_field)
    return listing


def _add_files(listing: Listing, domain: str, paths: Sequence[str | Path], text_field: str) -> None:
    files = TextFiles([Path(path) for path in paths], text_field)
    listing.units += files.units(domain)
    for note in files.skipped.notes():
        tqdm.write(f"{domain}: {note}", file=sys.stderr)


def _of_recipe(recipe: Recipe) -> Listing:
    sources = [source.model_dump(exclude={"comment"}, exclude_defaults=True) for source in recipe.sources]
    listing = Listing(built_from={"sources": sources})
    for source in recipe.sources:
        if source.files is not None:
            for file in source.files:
                listing.add(str(source.domain), file)
            _add_files(listing, str(source.domain), source.files, source.text_field)
            continue
        domains = [source.domain] if source.domain else list((source.domains or {}).values())
        for domain in dict.fromkeys(domains):
            listing.add(domain, called(source))
        if not domains:
            listing.undeclared.append(called(source))
        listing.units += dataset_units(source)
    return listing


def _of_environment() -> Listing:
    tqdm.write("collecting text of this installation", file=sys.stderr)
    found: Mapping[str, list[str]] = environment_documents()
    listing = Listing(built_from={"inputs": {name: ["environment"] for name in found}})
    for name, texts in found.items():
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
        size = sum(len(text.encode()) for text in texts)
        unit = Unit(
            f"environment, {name}", "environment", ["environment", name, digest], size, partial(_pairs, name, texts)
        )
        listing.units.append(unit)
        listing.add(name, "environment")
    return listing


def _pairs(name: str, texts: Sequence[str]) -> Iterator[Document]:
    return ((name, text) for text in texts)
