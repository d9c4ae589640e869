"""Which train domains a step of the proxy takes where it takes some of them only: stateless, fair, any step in O(k).

Steps come in blocks of c = ceil(k / n) for n of k domains. Every block has every domain at least once, in an order
drawn anew, so that over the run every domain meets every other. A block has e = c n - k places more than domains; whose
turn it is to come twice goes round, so after any number of blocks no domain has come more than once more often than
another.
"""

import hashlib
from functools import lru_cache

import numpy as np


class DomainSubsets:
    """The domains of each step, as indices 0 to count - 1."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        """Args: domains; how many of them in a step; seed of the draws.

        Raises:
            ValueError: `per_step` is not between 1 and `count`.
        """
        if not 1 <= per_step <= count:
            raise ValueError(f"{per_step} of {count} domains in a step")
        self.count = count
        self.per_step = per_step
        self._seed = seed
        self.block_steps = -(-count // per_step)
        self._extra = self.block_steps * per_step - count
        self._turns = np.array(self._permutation("turns", 0, count))
        self._block = lru_cache(maxsize=4)(self._make_block)

    def domains(self, step: int) -> list[int]:
        """The domains of this 0-based step, ascending; each once."""
        block, place = divmod(step, self.block_steps)
        return self._block(block)[place]

    def appearances(self, step: int) -> list[int]:
        """How often each domain came in the steps before this one, [count]."""
        block, place = divmod(step, self.block_steps)
        # Every block has each domain once, and the next `extra` of the turns once more.
        rounds, rest = divmod(block * self._extra, self.count)
        found = np.full(self.count, block + rounds)
        found[self._turns[:rest]] += 1
        for domains in self._block(block)[:place]:
            found[domains] += 1
        return [int(number) for number in found]

    def _make_block(self, block: int) -> list[list[int]]:
        """The domains of each step of a block.

        Those that come twice are put in front and, once more, at the end: front and end are different steps, since
        there are less of them than places in a step.
        """
        begin = block * self._extra
        twice = self._turns[np.arange(begin, begin + self._extra) % self.count]
        others = np.setdiff1d(self._turns, twice)
        once = others[self._permutation("order", block, len(others))]
        rows = np.concatenate([twice, once, twice]).reshape(self.block_steps, self.per_step)
        return [sorted(rows[row].tolist()) for row in self._permutation("steps", block, self.block_steps)]

    def _permutation(self, what: str, number: int, length: int) -> list[int]:
        """0 to length - 1 in the order of their hashes, which no version of a library will ever change."""

        def key(index: int) -> bytes:
            return hashlib.blake2b(f"{self._seed}\0{what}\0{number}\0{index}".encode(), digest_size=16).digest()

        return sorted(range(length), key=key)
