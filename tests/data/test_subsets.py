"""Subsets of domains: every block has all of them, turns are fair, and any step can be asked for."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.data.subsets import DomainSubsets


@st.composite
def subsets(draw: st.DrawFn) -> DomainSubsets:
    count = draw(st.integers(1, 40))
    return DomainSubsets(count, draw(st.integers(1, count)), draw(st.integers(0, 2**40)))


@given(subsets(), st.integers(0, 1000))
def test_every_block_has_every_domain_and_no_step_one_twice(found: DomainSubsets, block: int) -> None:
    steps = [found.domains(step) for step in range(block * found.block_steps, (block + 1) * found.block_steps)]
    assert found.block_steps == -(-found.count // found.per_step)
    assert {domain for domains in steps for domain in domains} == set(range(found.count))
    assert all(domains == sorted(set(domains)) and len(domains) == found.per_step for domains in steps)


@given(subsets())
@settings(max_examples=40)
def test_appearances_are_counts_and_turns_differ_by_one_at_most(found: DomainSubsets) -> None:
    seen = Counter(dict.fromkeys(range(found.count), 0))
    for step in range(6 * found.block_steps):
        assert found.appearances(step) == [seen[domain] for domain in range(found.count)]
        seen.update(found.domains(step))
        if (step + 1) % found.block_steps == 0:
            assert max(seen.values()) - min(seen.values()) <= 1


def test_every_domain_meets_every_other() -> None:
    found = DomainSubsets(10, 5, seed=3)
    pairs = {pair for step in range(60) for pair in itertools.combinations(found.domains(step), 2)}
    assert len(pairs) == 45


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    one, same, other = (DomainSubsets(9, 4, seed) for seed in (1, 1, 2))
    steps = [90, 3, 17, 4]
    assert [one.domains(step) for step in steps] == [same.domains(step) for step in reversed(steps)][::-1]
    assert [one.domains(step) for step in range(30)] != [other.domains(step) for step in range(30)]
    # Resuming with another version must give the same subsets: these were written down.
    assert [DomainSubsets(5, 2, 7).domains(step) for step in range(4)] == WRITTEN_DOWN


WRITTEN_DOWN = [[0, 2], [1, 3], [3, 4], [0, 1]]


@pytest.mark.parametrize("per_step", [0, 6])
def test_sizes_that_cannot_be(per_step: int) -> None:
    with pytest.raises(ValueError, match=f"{per_step} of 5 domains"):
        DomainSubsets(5, per_step, seed=0)
