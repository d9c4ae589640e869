"""Fates: against a plain reference, whatever the parts and buckets; a document never stands on both sides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doge_ds.data.preparing import fates
from doge_ds.data.preparing.fates import COPY, TRAIN, VALID, Fates, HeldOutRule, copies_note, decide_fates
from doge_ds.data.preparing.parts import INDEX, Part
from doge_ds.errors import ConfigError, StoreError

Record = tuple[str, int, int]
"""Domain, hash, tokens."""


def write_parts(records: Sequence[Record], sizes: Sequence[int], folder: Path) -> list[Part]:
    """The records in their order, so many a part; each part has numbers of its own for the domains."""
    parts, start = [], 0
    for number, size in enumerate([*sizes, len(records)]):
        chosen = records[start : start + size]
        start += size
        if chosen:
            names = list(dict.fromkeys(name for name, _, _ in chosen))
            rows = [(digest, tokens, 1, names.index(name)) for name, digest, tokens in chosen]
            file = folder / f"{number}.index"
            np.array(rows, dtype=INDEX).tofile(file)
            parts.append(Part(folder / "none", file, names))
    return parts


def expected(records: Sequence[Record], rule: HeldOutRule, deduplicate: bool) -> list[int]:
    """The rule in plain Python, dictionaries and sets."""
    seen: set[int] = set()
    kept = []
    for place, (_, digest, _) in enumerate(records):
        if not (deduplicate and digest in seen):
            kept.append(place)
        seen.add(digest)
    held_out: set[int] = set()
    for name in {name for name, _, _ in records}:
        mine = sorted((records[place][1], records[place][2]) for place in kept if records[place][0] == name)
        if not mine:
            continue
        if rule.fraction is not None:
            chosen = {digest for digest, _ in mine if digest < rule.fraction * 2**64} or {mine[0][0]}
            held_out |= chosen - {mine[-1][0]}
        else:
            goal, amount = rule.documents or rule.tokens or 0, 0
            for digest, tokens in mine:
                if amount < goal:
                    held_out.add(digest)
                    amount += tokens if rule.tokens else 1
    return [
        COPY if place not in kept else VALID if digest in held_out else TRAIN
        for place, (_, digest, _) in enumerate(records)
    ]


def impossible(records: Sequence[Record], wanted: Sequence[int], rule: HeldOutRule) -> bool:
    """Whether a domain has no two different documents, or the rule takes its last one."""
    for name in {name for name, _, _ in records}:
        mine = {
            digest for (owner, digest, _), fate in zip(records, wanted, strict=True) if owner == name and fate != COPY
        }
        amount = 0
        for digest in sorted(mine)[:-1]:
            amount += sum(
                tokens if rule.tokens else 1
                for (owner, other, tokens), fate in zip(records, wanted, strict=True)
                if owner == name and other == digest and fate != COPY
            )
        if len(mine) < 2 or (rule.fraction is None and amount < (rule.documents or rule.tokens or 0)):
            return True
    return False


# Few different hashes, so that copies are common; spread over all bits, and some next to each other.
HASHES = st.sampled_from([n * 2**61 + m for n in range(8) for m in (0, 1, 2**40, 2**52 + 5)])
RECORDS = st.lists(st.tuples(st.sampled_from("abc"), HASHES, st.integers(1, 50)), min_size=1, max_size=60)
RULES = st.one_of(
    st.builds(HeldOutRule, fraction=st.floats(0.01, 0.99)),
    st.builds(HeldOutRule, documents=st.integers(1, 3)),
    st.builds(HeldOutRule, tokens=st.integers(1, 60)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=RECORDS,
    rule=RULES,
    deduplicate=st.booleans(),
    sizes=st.lists(st.integers(0, 20), max_size=4),
    bucket=st.sampled_from([1, 5, 1000]),
)
def test_equal_to_the_reference(
    records: list[Record],
    rule: HeldOutRule,
    deduplicate: bool,
    sizes: list[int],
    bucket: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Equal documents have equal tokens.
    records = [(name, digest, 1 + digest % 47) for name, digest, _ in records]
    folder = tmp_path_factory.mktemp("fates")
    monkeypatch.setattr(fates, "BUCKET_DOCUMENTS", bucket)
    domains = sorted({name for name, _, _ in records})
    parts = write_parts(records, sizes, folder)
    wanted = expected(records, rule, deduplicate)
    if impossible(records, wanted, rule):
        with pytest.raises(StoreError, match=r"has only|leaves none to train on"):
            decide_fates(parts, domains, rule, deduplicate, folder / "work")
        return
    found = decide_fates(parts, domains, rule, deduplicate, folder / "work")
    assert found.values.tolist() == wanted
    sides: dict[int, set[int]] = {}
    for (_, digest, _), fate in zip(records, found.values.tolist(), strict=True):
        if fate != COPY:
            sides.setdefault(digest, set()).add(fate)
    assert all(len(side) == 1 for side in sides.values())
    assert not (folder / "work").exists()


@settings(max_examples=100, deadline=None)
@given(records=RECORDS)
def test_copies_are_counted(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    records += [(name, 2**63 + 2 * n, 1) for name in "abc" for n in range(2)] + [("c", 5, 1)]
    folder = tmp_path_factory.mktemp("fates")
    found = decide_fates(
        write_parts(records, [], folder), list("abc"), HeldOutRule(documents=1), False, folder / "work"
    )
    within, across = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    seen: list[tuple[str, int]] = []
    for name, digest, _ in records:
        if (name, digest) in seen:
            within[name] += 1
        elif digest in {other for _, other in seen}:
            across[name] += 1
        seen.append((name, digest))
    assert {name: copies.within for name, copies in zip("abc", found.copies, strict=True)} == within
    assert {name: copies.across for name, copies in zip("abc", found.copies, strict=True)} == across


def test_a_rule_that_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    records = [("a", n * 2**60, 10) for n in range(5)]
    parts = write_parts(records, [], tmp_path)
    for rule, words in (
        (HeldOutRule(documents=5), "has 5 documents, and --valid_documents 5 leaves none to train on"),
        (HeldOutRule(tokens=41), "has 50 tokens, and --valid_tokens 41 leaves none to train on"),
    ):
        with pytest.raises(StoreError, match=words):
            decide_fates(parts, ["a"], rule, False, tmp_path / "work")
    assert decide_fates(parts, ["a"], HeldOutRule(tokens=40), False, tmp_path / "work").values.tolist() == [
        1,
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("records", "deduplicate", "words"),
    [
        ([("a", 1, 1)], False, "domain a: has only one document, and the held-out split"),
        ([("a", 1, 1)] * 3, False, "domain a: has only 3 copies of one document"),
        ([("a", 1, 1)] * 3, True, "domain a: has only 3 copies of one document"),
        ([("b", 1, 1), ("b", 2, 1), ("a", 1, 1)], True, "domain a: has only copies of other domains' documents"),
        ([("b", 1, 1), ("b", 2, 1)], False, "domain a: has no document"),
    ],
)
def test_domains_with_too_little(records: list[Record], deduplicate: bool, words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        decide_fates(
            write_parts(records, [], tmp_path), ["a", "b"], HeldOutRule(fraction=0.1), deduplicate, tmp_path / "w"
        )
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (HeldOutRule(), "0 of three are given"),
        (HeldOutRule(fraction=0.1, tokens=5), "2 of three are given"),
        (HeldOutRule(fraction=1.0), "--valid_fraction: 1.0 is no share"),
        (HeldOutRule(documents=0), "--valid_documents: 0 is too few"),
        (HeldOutRule(tokens=-1), "--valid_tokens: -1 is too few"),
    ],
)
def test_rules_out_of_range(rule: HeldOutRule, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rule.check()


def test_the_note_on_copies() -> None:
    found = Fates(np.zeros(3, dtype=np.uint8), [fates.DomainCopies(2, 1), fates.DomainCopies()])
    assert copies_note(["a", "b"], found, True) == (
        "documents equal to an earlier one, dropped: a 2 of its own and 1 of other domains'"
    )
    assert "kept (--deduplicate drops them)" in copies_note(["a", "b"], found, False)
    found.copies[0] = fates.DomainCopies()
    assert copies_note(["a", "b"], found, True) == ""
