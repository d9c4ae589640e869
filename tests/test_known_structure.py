"""A proxy finds what is known to be in synthetic text; `benchmarks/known_structure.py` is the full version.

Not every seed would meet the demand on the pair of duplicates: docs/known_structure.md says why.
"""

from pathlib import Path

import numpy as np
import pytest

from tests import synthetic_domains
from tests.synthetic_domains import GROUPS, OVERLAPS, SLOTS, TWIN, VOCABULARY_SIZE, make_domains, vocabulary

SEED = 0
STEPS = 80


@pytest.fixture(scope="module")
def domains() -> dict[str, np.ndarray]:
    return make_domains(SEED, 200_000)


def pairs(ids: np.ndarray, words: np.ndarray) -> np.ndarray:
    """How often each two of these words follow one another, [words, words]."""
    both = ids[:-1] * VOCABULARY_SIZE + ids[1:]
    counts = np.bincount(both, minlength=VOCABULARY_SIZE**2).reshape(VOCABULARY_SIZE, VOCABULARY_SIZE)
    return counts[np.ix_(words, words)]


def difference(first: np.ndarray, second: np.ndarray, words: np.ndarray) -> float:
    """Chi-squared of two equally long texts' pairs of these words, over its degrees of freedom.

    0.9 to 2.2 for two draws of one process over 4 seeds, the more the fewer words; at least 38 for the noise.
    """
    one, two = pairs(first, words), pairs(second, words)
    return float(((one - two) ** 2 / np.maximum(one + two, 1)).sum() / one.size)


@pytest.mark.parametrize("name", OVERLAPS)
def test_shared_words_make_up_the_overlap_and_behave_as_in_the_target(
    domains: dict[str, np.ndarray], name: str
) -> None:
    words = vocabulary("target")
    shared = np.intersect1d(vocabulary(name), words)
    assert len(shared) == SLOTS * OVERLAPS[name]
    for other in (name, "target"):
        assert np.isin(domains[other], shared).mean() == pytest.approx(OVERLAPS[name], abs=0.02)
    if len(shared):
        assert difference(domains[name], domains["target"], shared) < 3
        assert difference(domains["noise"], domains["target"], shared) > 10


def test_each_group_of_words_is_shared_by_four_domains_and_all_other_words_by_none() -> None:
    words, domains_with_it = np.unique(np.concatenate([vocabulary(name) for name in OVERLAPS]), return_counts=True)
    assert words.tolist() == list(range(1, VOCABULARY_SIZE))
    assert domains_with_it.tolist() == [(GROUPS + 1) // 2] * SLOTS + [1] * (VOCABULARY_SIZE - 1 - SLOTS)


def test_the_duplicate_is_another_draw_and_the_noise_has_no_structure(domains: dict[str, np.ndarray]) -> None:
    words = vocabulary(TWIN)
    assert set(domains["duplicate"]) == set(domains[TWIN]) == set(words)
    assert (domains["duplicate"] == domains[TWIN]).mean() < 0.05
    assert difference(domains["duplicate"], domains[TWIN], words) < 3
    frequencies = np.bincount(domains["noise"], minlength=VOCABULARY_SIZE) / len(domains["noise"])
    assert frequencies[0] == 0
    assert frequencies[1:] == pytest.approx(1 / (VOCABULARY_SIZE - 1), rel=0.2)


def test_weights_follow_the_overlap_with_the_target_and_duplicates_weigh_the_same(tmp_path: Path) -> None:
    synthetic_domains.write_store(tmp_path / "store", SEED, STEPS)
    found = synthetic_domains.train_proxy(
        tmp_path / "proxy", tmp_path / "store", SEED, STEPS, {"target": ["target"], "preset": "official"}
    )
    assert found.losses["target"] < 3  # ln 351 = 5.9 before it learns, and 1.7 is all that can be learned
    assert found.correlation >= 0.9, found.weights
    assert found.largest_over_uniform >= 1.5, found.weights
    assert found.duplicate_difference <= 0.1, found.weights
