"""Keyed permutations, computed element by element: the order inside of a domain, and which rank takes which slot."""

import hashlib
import json
import math

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

FORMAT_VERSION = 1  # goes into every key and fingerprint: who changes any draw of the order changes this number


class Permutation:
    """Keyed permutations of range(element_count), one for each epoch, computed element by element.

    A Feistel network over pairs (left, right) with left < rows and right < columns, where rows * columns just holds
    all elements (fewer than sqrt(element_count) + 1 pairs too many); what falls outside is permuted again until it
    falls inside ("cycle walking", Black and Rogaway 2002). It is a permutation whatever its round function.
    """

    def __init__(self, element_count: int, *key: str | int) -> None:
        """Args: from 1 to 2**60 elements; the key: what the permutation is for, a seed, a name."""
        if not 1 <= element_count <= 1 << 60:
            raise ValueError(f"a permutation of {element_count} elements")
        self.element_count = element_count
        # JSON keeps ("a", 11) and ("a1", 1) apart; Python's hash() would differ by process.
        self._key = json.dumps([FORMAT_VERSION, *key])[:-1]
        self._rows = math.isqrt(element_count - 1) + 1
        self._columns = -(-element_count // self._rows)

    def __call__(self, elements: npt.ArrayLike, epochs: npt.ArrayLike = 0) -> Int64Array:
        """Where each element goes in its epoch.

        Args:
            elements: [n], int64, 0 <= element < element_count.
            epochs: [n] or one for all, int64.

        Returns:
            [n], int64, in the same range. Raises ValueError for an element out of range.
        """
        values = np.array(elements, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() < self.element_count:
            raise ValueError(f"elements from {values.min()} to {values.max()} of {self.element_count}")
        distinct, which = np.unique(np.broadcast_to(epochs, values.shape), return_inverse=True)
        keys = np.array([self._round_keys(epoch) for epoch in distinct.tolist()], dtype=np.uint64).reshape(-1, 8).T
        outside = np.arange(len(values))
        while len(outside):
            values[outside] = self._rounds(values[outside], keys, which[outside])
            outside = outside[values[outside] >= self.element_count]
        return values

    def _round_keys(self, epoch: int) -> UInt64Array:
        """[8], one key a round."""
        text = f"{self._key}, {epoch}]"
        return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=64).digest(), dtype="<u8")

    def _rounds(self, values: Int64Array, keys: UInt64Array, which: npt.NDArray[np.intp]) -> Int64Array:
        """[n] values -> [n], a permutation of range(rows * columns) for each epoch; keys [8, epochs], which [n]."""
        left, right = np.divmod(values.astype(np.uint64), np.uint64(self._columns))
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = _remainder(left + _scramble(right ^ even[which]), rows)
            right = _remainder(right + _scramble(left ^ odd[which]), columns)
        return (left * columns + right).astype(np.int64)


def _scramble(values: UInt64Array) -> UInt64Array:
    """[n] -> [n], each below 2**63, so that adding a row or a column cannot wrap. The finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values ^ (values >> np.uint64(31))) >> np.uint64(1)


def _remainder(values: UInt64Array, divisor: np.uint64) -> UInt64Array:
    """values % divisor. To divide by one number numpy multiplies; its % divides each time and takes 3 times as long."""
    return values - values // divisor * divisor
