"""Documents of Hugging Face datasets, on the hub or in a folder of such files, streamed: a unit is a data file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_ds.data.reading.recipes import Source
from doge_ds.data.reading.records import find, kind_of, no_field, text_of_record
from doge_ds.data.reading.units import Document, Unit
from doge_ds.data.tokens import DOMAIN_NAME_RULE, is_domain_name
from doge_ds.errors import ConfigError, DogeError, StoreError, first_line, nearest


def dataset_units(source: Source) -> list[Unit]:
    """One unit for each of the dataset's data files, in their order; no text is read.

    Raises:
        StoreError: the dataset, its configuration or its split cannot be opened.
    """
    name = called(source)
    stream, files = _open(source)
    count = stream.num_shards
    if stream.features is not None:  # Parquet: only these columns are fetched; JSON lines are read whole anyway
        fields = [source.text_field, source.domain_field or source.text_field]
        stream = stream.select_columns(sorted({_column(stream.features, field, name) for field in fields}))

    def unit(index: int) -> Unit:
        label = f"{name}, file {index + 1} of {count}"

        def read() -> Iterator[Document]:
            return _documents(stream.shard(num_shards=count, index=index), source, label)

        identity = ["dataset", source.model_dump(exclude={"comment"}), index, count, files]
        return Unit(label, name, identity, 0, read)

    return [unit(index) for index in range(count)]


def called(source: Source) -> str:
    """What messages and the manifest call a dataset."""
    revision = f"at {source.revision}" if source.revision else None
    return " ".join(part for part in (source.dataset, source.configuration, source.split, revision) if part)


def _open(source: Source) -> tuple[Any, list[str]]:
    """The stream, and what tells one version of its files from another: their names, and their commit or times."""
    import datasets  # takes a second: only where a dataset is wanted

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is in the exception, and is ours to say
    try:
        builder = datasets.load_dataset_builder(str(source.dataset), source.configuration, revision=source.revision)
        stream: Any = builder.as_streaming_dataset(split=source.split)
    except Exception as error:  # OSError, ValueError, ConnectionError and the hub's own: all mean the same
        raise _unusable(source, error) from None
    found = (builder.config.data_files or {}).get(source.split, [])
    refuse_files_elsewhere(source, list(map(str, found)))
    return stream, [*map(str, found), *map(str, getattr(found, "origin_metadata", []))]


def refuse_files_elsewhere(source: Source, files: Sequence[str]) -> None:
    """A dataset's README.md may name any file; one that lies elsewhere on this machine is nobody's text.

    Raises:
        StoreError: a file is not in the dataset's folder, or the dataset is on the hub and the file is here. Links are
            followed: the hub's own cache consists of them.
    """
    folder = os.path.abspath(str(source.dataset)) if Path(str(source.dataset)).is_dir() else None
    for file in files:
        path = file.rpartition("::")[2]  # zip://inside::archive
        is_here = "://" not in path or path.startswith("file:")
        if is_here and (folder is None or not Path(os.path.abspath(path)).is_relative_to(folder)):
            problem = f"has {file} among its files, which lies elsewhere"
            raise StoreError(called(source), problem, "mend data_files in its README.md")


def _unusable(source: Source, error: Exception) -> StoreError:
    problem = f"cannot be opened ({type(error).__name__}: {first_line(error)})"
    if Path(str(source.dataset)).is_dir():
        return StoreError(called(source), problem, "check its files, the configuration and the split")
    folder = str(source.dataset).rpartition("/")[2]
    fetch = f"`hf download {source.dataset} --repo-type dataset --local-dir {folder}`"
    remedy = f"check the name; where there is no internet, fetch it on a login node with {fetch} and give that folder"
    return StoreError(called(source), problem, remedy)


def _column(features: Mapping[str, Any], name: str, where: str) -> str:
    """The column that a field stands in."""
    column = name if name in features else name.partition(".")[0]
    if column not in features:
        raise no_field(features, name, where)
    return column


def _documents(rows: Any, source: Source, label: str) -> Iterator[Document]:
    number = 0
    try:
        for number, record in enumerate(rows, start=1):
            where = f"{label}, row {number}"
            yield _domain(record, source, where), text_of_record(record, source.text_field, where)
    except DogeError:
        raise
    except Exception as error:  # pyarrow's, zstandard's, the network's: the library lets all of them through
        problem = f"cannot be read after row {number} ({type(error).__name__}: {first_line(error)})"
        raise StoreError(label, problem, "start again; if it stays, fetch the file again") from None


def _domain(record: Mapping[str, Any], source: Source, where: str) -> str:
    """The domain of a record.

    Raises:
        StoreError: the field is missing or holds no text.
        ConfigError: its value is not listed in `domains`, or cannot name a domain.
    """
    if source.domain_field is None:
        return str(source.domain)
    try:
        value = find(record, source.domain_field)
    except KeyError:
        raise no_field(record, source.domain_field, where) from None
    if not isinstance(value, str):
        problem = f"field {source.domain_field!r} is {kind_of(value)}, not a string"
        raise StoreError(where, problem, "name another domain_field in the recipe")
    name = value if source.domains is None else source.domains.get(value)
    if name is None:
        remedy = f"add it to domains in the recipe ({nearest(value, source.domains or ())})"
        raise ConfigError(where, f"the recipe has no domain for {value!r}", remedy)
    if not is_domain_name(name):
        raise ConfigError(where, f"{name!r} cannot name a domain", f"give it a name in domains: {DOMAIN_NAME_RULE}")
    return name
