"""What tests of the order of samples have in common: weights to try, and what an epoch is."""

import numpy as np

from doge_ds.data.order import PERIOD


def random_composition(domains: int, seed: int) -> dict[str, int]:
    """`domains` positive integers that sum to PERIOD, skewed over orders of magnitude."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.uniform(0, random.uniform(0.1, 10), domains))
    integers = 1 + np.floor(sizes / sizes.sum() * (PERIOD - domains)).astype(int)
    integers[random.integers(domains)] += PERIOD - integers.sum()
    return {f"domain{index:03d}": int(integer) for index, integer in enumerate(integers)}


def as_weights(integers: dict[str, int]) -> dict[str, float]:
    return {name: integer / PERIOD for name, integer in integers.items()}


def assert_each_epoch_once(sequences: np.ndarray, count: int) -> None:
    """Every whole epoch is a permutation of all sequences, and the last, unfinished one repeats none."""
    for start in range(0, len(sequences), count):
        epoch = np.sort(sequences[start : start + count])
        if len(epoch) == count:
            assert np.array_equal(epoch, np.arange(count))
        else:
            assert epoch[0] >= 0
            assert epoch[-1] < count
            assert (np.diff(epoch) > 0).all()
