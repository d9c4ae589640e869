"""Parquet files: no damage loses rows in silence. tests/data/test_readers.py reads tables beside the other formats."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from doge_ds.data.reading.readers import read_file
from doge_ds.errors import StoreError


def test_no_flipped_bit_of_a_parquet_file_loses_a_row_in_silence(tmp_path: Path) -> None:
    """Without checksums a text may come back changed, but pyarrow alone gives fewer rows for 15 of these flips."""
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"some words {number}" for number in range(12)]})
    parquet.write_table(table, file, compression="none", use_dictionary=False, row_group_size=4)
    whole = file.read_bytes()
    assert len(list(read_file(file, "text"))) == 12
    refused = 0
    for place in range(len(whole)):
        for bit in (1, 16):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            file.write_bytes(damaged)
            try:
                assert len(list(read_file(file, "text"))) == 12, (place, bit)
            except StoreError:
                refused += 1
    assert refused > len(whole) / 4
