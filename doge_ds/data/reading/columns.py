"""Documents of tables: Parquet files, and datasets that Hugging Face's library saved; rows are counted from 1.

pyarrow and datasets are imported where such a table is met, because they take two seconds together.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from doge_ds.data.reading.records import find, no_field, no_utf8, text_of_record
from doge_ds.errors import StoreError, first_line
from doge_ds.json_files import is_inside

_PARQUET_READ, _ROWS = 1 << 20, 128  # bytes of a column, rows at a time


def read_parquet(file: Path, text_field: str) -> Iterator[str]:
    """The documents of a Parquet file, a row each; raises StoreError as `read_file` does."""
    import pyarrow
    from pyarrow import parquet

    try:
        # Both options: without them a whole column of a row group, or of the whole file, is read ahead into memory.
        with parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=_PARQUET_READ, page_checksum_verification=True
        ) as opened:
            column = _column(opened.schema_arrow, text_field, str(file))
            batches = opened.iter_batches(_ROWS, columns=[text_field], use_threads=False)
            rows = yield from _texts_of_batches(batches, column, text_field, str(file))
            if rows != opened.metadata.num_rows:  # pyarrow ends early on some damage without a word
                raise ValueError(f"{rows} of {opened.metadata.num_rows} rows can be read")
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's; pyarrow's own have no number
        raise StoreError(
            str(file), f"is no sound Parquet file ({first_line(error)})", "copy or write the file again"
        ) from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made this folder."""
    marks = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
    return any(all((folder / name).is_file() for name in names) for names in marks)


def open_saved_dataset(folder: Path) -> tuple[Any, list[str]]:
    """A dataset, memory-mapped, and the names of the splits passed over: of several, `train` is taken.

    Raises:
        StoreError: the folder is damaged, or has splits but none named train.
    """
    import datasets

    try:
        splits = _splits(folder)
        if splits and "train" not in splits:
            raise StoreError(
                str(folder), f"has no split 'train', only {', '.join(splits)}", f"name one, as in {folder}/{splits[0]}"
            )
        # Of several splits this one alone: datasets cannot load a whole that has an empty one.
        chosen = folder / "train" if splits else folder
        _refuse_files_elsewhere(chosen)
        dataset = datasets.load_from_disk(str(chosen), keep_in_memory=False)
    except StoreError:
        raise
    except Exception as error:  # OSError, KeyError, ValueError, AttributeError, pyarrow's own: all mean the same
        raise _unsound_dataset(folder, error) from None
    return dataset, [name for name in splits if name != "train"]


def _splits(folder: Path) -> list[str]:
    listed = folder / "dataset_dict.json"
    return list(map(str, json.loads(listed.read_bytes())["splits"])) if listed.is_file() else []


def _refuse_files_elsewhere(folder: Path) -> None:
    """Raises StoreError where a dataset's own list of files leads out of its folder."""
    for file in json.loads((folder / "state.json").read_bytes())["_data_files"]:
        if not is_inside(file["filename"]):
            problem = f"has {file['filename']!r} among its files, which lies elsewhere"
            raise StoreError(str(folder), problem, "copy or save it again")


def read_saved_dataset(dataset: Any, folder: Path, text_field: str, first: int = 0) -> Iterator[str]:
    """The documents of a dataset that `open_saved_dataset` opened, a row each; only the text's column is read.

    Args:
        first: rows of the whole that come before these, for messages.

    Raises:
        StoreError: the dataset is damaged, or a row has no text in `text_field`.
    """
    import pyarrow

    column = _column(dataset.features.arrow_schema, text_field, str(folder))
    try:
        batches = map(_validated, dataset.select_columns([column]).with_format("arrow").iter(_ROWS))
        yield from _texts_of_batches(batches, column, text_field, str(folder), first)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise _unsound_dataset(folder, error) from None


def _validated(batch: Any) -> Any:
    """Saved datasets have no checksums, and an offset that points outside of the text would end the process."""
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):  # that is found once more where its row is known
            raise
    return batch


def _unsound_dataset(folder: Path, error: Exception) -> StoreError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return StoreError(str(folder), f"is no sound Hugging Face dataset ({reason})", "copy or save it again")


def _column(schema: Any, text_field: str, where: str) -> str:
    """The name of the column that holds the field."""
    fields = _nested(schema)
    try:
        find(fields, text_field)
    except KeyError:
        raise no_field(fields, text_field, where) from None
    column = text_field if text_field in fields else text_field.partition(".")[0]
    if schema.names.count(column) > 1:
        raise StoreError(where, f"has several columns named {column!r}", "give them different names")
    return column


def _nested(fields: Iterable[Any]) -> dict[str, Any]:
    """The types of a pyarrow schema's or struct's fields, structs as objects."""
    from pyarrow import types

    return {field.name: _nested(field.type) if types.is_struct(field.type) else field.type for field in fields}


def _texts_of_batches(
    batches: Iterable[Any], column: str, text_field: str, source: str, row: int = 0
) -> Generator[str, None, int]:
    """The texts, and when they are all read the number of the last row."""
    for batch in batches:
        for value in batch.column(column):
            row += 1
            where = f"{source}, row {row}"
            try:
                record = {column: value.as_py()}
            except UnicodeDecodeError as error:
                raise no_utf8(error, where) from None
            yield text_of_record(record, text_field, where)
    return row
