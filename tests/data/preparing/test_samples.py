"""Samples: a draw that depends on documents and seed alone, of the size asked for, with nothing held out among it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.data.preparing import samples
from doge_ds.data.preparing.samples import Sample, draw_samples
from doge_ds.data.reading.sources import content_hash
from doge_ds.data.reading.units import Unit

TEXTS = [f"document {n} " + "x" * (n * 7 % 50) for n in range(500)]
THRESHOLD = 2**60


def sampled(texts: list[str], **options: int) -> Sample:
    sample = Sample(**{"seed": 0, "held_out_below": THRESHOLD, "most_bytes": 3000, **options})
    for text in texts:
        sample.add(text)
    return sample


@settings(max_examples=100, deadline=None)
@given(order=st.randoms(use_true_random=False), size=st.integers(1, 20_000), count=st.none() | st.integers(1, 600))
def test_equal_to_sorting_all_of_it_whatever_the_order_and_copies(
    order: random.Random, size: int, count: int | None
) -> None:
    texts = [*TEXTS, *TEXTS[::3]]
    order.shuffle(texts)
    options = {} if count is None else {"most_documents": count}
    found = sampled(texts, most_bytes=size, **options).texts()
    everything = sampled(TEXTS, most_bytes=10**9).texts()
    assert sorted(everything) == sorted(text for text in TEXTS if content_hash(text) >= THRESHOLD)
    expected: list[str] = []
    for text in everything:
        if sum(len(drawn.encode()) for drawn in expected) < size and len(expected) != count:
            expected.append(text)
    assert found == expected


def test_seeds_draw_other_documents_evenly() -> None:
    draws = [set(sampled(TEXTS, seed=seed).texts()) for seed in range(40)]
    assert len(set(map(frozenset, draws))) == 40
    share = len(draws[0]) / len(TEXTS)
    for text in TEXTS:
        if content_hash(text) >= THRESHOLD:
            times = sum(text in draw for draw in draws)
            assert times < 40 * share + 6 * (40 * share * (1 - share)) ** 0.5, "none is favoured"


def test_the_held_out_ones_can_be_drawn_instead() -> None:
    found = sampled(TEXTS, of_held_out=True, most_bytes=10**9).texts()
    assert sorted(found) == sorted(text for text in TEXTS if content_hash(text) < THRESHOLD)


def test_of_a_long_document_only_the_beginning_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "LONGEST_DRAWN", 10)
    assert sorted(sampled(["a" * 30, "b" * 10], held_out_below=0).texts()) == ["a" * 10, "b" * 10]


def test_documents_go_to_their_domains_and_empty_ones_nowhere() -> None:
    unit = Unit("u", "u", [], 0, lambda: iter([("a", "1"), ("b", "2"), ("a", " \n"), ("a", "3")]))
    first = {name: Sample(0, 0, 100) for name in "ab"}
    second = {name: Sample(0, 2**64, 100) for name in "ab"}
    draw_samples([unit], first, second)
    assert sorted(first["a"].texts()) == ["1", "3"]
    assert first["b"].texts() == ["2"]
    assert second["a"].texts() == []
    assert second["a"].documents == 2
