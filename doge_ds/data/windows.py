"""Windows of a token store as tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from doge_ds.data.permutation import Int64Array
from doge_ds.data.tokens import TokenStore


def training_windows(store: TokenStore, domain: str, sequence_length: int) -> npt.NDArray[Any]:
    """[sequences, sequence_length]: the domain's training sequences, memory-mapped: only what is read is loaded."""
    count = store.sequence_count(domain, sequence_length)
    tokens = np.asarray(store.tokens(domain, "train"))  # a plain view: np.memmap makes every row a slow memmap object
    return tokens[: count * sequence_length].reshape(count, sequence_length)


def micro_batches(sequences: torch.Tensor, size: int) -> list[torch.Tensor]:
    """[n, ...] as n / size views of [size, ...]."""
    return list(sequences.view(-1, size, *sequences.shape[1:]).unbind())


def gather(windows: Sequence[npt.NDArray[Any]], sources: Int64Array, sequences: Int64Array) -> torch.Tensor:
    """[n, sequence_length], int64: for each i, row sequences[i] of windows[sources[i]]."""
    # One call for each source, not for each row: 256 rows of 512 tokens take 0.14 ms so, and 0.63 ms one by one.
    by_source = np.argsort(sources, kind="stable")
    ends = np.cumsum(np.bincount(sources, minlength=len(windows))).tolist()
    grouped = np.empty((len(sources), windows[0].shape[1]), dtype=windows[0].dtype)
    for window, start, end in zip(windows, [0, *ends], ends, strict=False):
        if start < end:
            chosen = sequences[by_source[start:end]]
            np.take(window, chosen, axis=0, out=grouped[start:end], mode="clip")  # "raise" would copy once more
    places = np.empty_like(by_source)
    places[by_source] = np.arange(len(by_source))
    return torch.from_numpy(grouped.take(places, axis=0).astype(np.int64))
