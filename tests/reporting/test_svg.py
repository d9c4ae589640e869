"""Names that are cut to the room that they have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.reporting.svg import shorten, text_width

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60), st.floats(20, 300))
def test_a_name_takes_no_more_than_its_room_and_is_whole_where_it_fits(name: str, room: float) -> None:
    cut = shorten(name, room)
    assert text_width(cut) <= room
    if text_width(name) <= room:
        assert cut == name
    else:
        assert cut.endswith(ELLIPSIS)
        assert name.startswith(cut.removesuffix(ELLIPSIS))
        longer = name[: len(cut)]
        assert text_width(f"{longer}{ELLIPSIS}") > room or cut == f"{longer[:-1]}{ELLIPSIS}"


@pytest.mark.parametrize("letter", ["i", "m", "W", "\u4e2d"])
def test_wide_letters_and_very_long_names(letter: str) -> None:
    cut = shorten(letter * 5000, 100)
    assert 80 < text_width(cut) <= 100
