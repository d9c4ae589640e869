"""Charts: what is drawn of the numbers, and that labels do not overlap."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_ds.reporting.figures import Panel, draw_chart, spread, thin
from doge_ds.reporting.svg import LINES, NARROW, WIDE


def panel(domains: int, lines: int = 20) -> Panel:
    steps = np.arange(1, lines + 1)
    return Panel("Loss", "nats", steps, {f"d{number}": number + 1 / steps for number in range(domains)})


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def draw(*panels: Panel, order: list[str] | None = None, points: int = 240, name: str = "c") -> tuple[str, str]:
    chart = draw_chart(name, panels, order or list(panels[0].series), "description", "caption", points)
    return chart.wide, chart.narrow


@given(
    st.lists(st.floats(-50, 350), min_size=1, max_size=11),
    st.floats(10, 20),
)
def test_spread_labels_keep_their_distance_and_order_and_stay_inside(positions: list[float], distance: float) -> None:
    moved = spread(positions, distance, 0, 260)
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [moved[index] for index in order]
    assert all(after - before >= distance - 1e-6 for before, after in pairwise(placed))
    assert min(placed) >= -1e-6
    assert max(placed) <= 260 + 1e-6


def test_labels_far_apart_stay_where_they_are() -> None:
    assert spread([100, 20, 60], 14, 0, 260) == [100, 20, 60]
    assert spread([50, 50], 10, 0, 260) == [45, 55]


@pytest.mark.parametrize(("length", "points", "count"), [(1, 240, 1), (240, 240, 240), (5000, 240, 240), (5, 1, 2)])
def test_thinning_keeps_both_ends(length: int, points: int, count: int) -> None:
    chosen = thin(length, points)
    assert len(chosen) == count
    assert (chosen[0], chosen[-1]) == (0, length - 1)


def test_every_line_is_named_with_its_last_value_in_both_drawings() -> None:
    wide, narrow = draw(panel(3))
    for svg, width in ((wide, WIDE), (narrow, NARROW)):
        assert {"d0 0.0500", "d1 1.05", "d2 2.05", "Loss", "nats", "steps done"} <= set(texts(svg))
        assert svg.startswith("<svg ")
        assert f'viewBox="0 0 {width} ' in svg


def test_more_lines_than_have_room_become_a_band() -> None:
    wide, _ = draw(panel(LINES))
    assert not [text for text in texts(wide) if "others" in text]
    wide, _ = draw(panel(30), order=[f"d{number}" for number in range(29, -1, -1)])
    assert f"{30 - LINES} others" in texts(wide)
    named = {text.split()[0] for text in texts(wide) if re.match(r"d\d", text)}
    assert named == {f"d{number}" for number in range(29, 29 - LINES, -1)}


def test_lines_differ_without_their_colour() -> None:
    wide, _ = draw(panel(LINES))
    marks = set(re.findall(r'<defs>\s*<path id="([^"]+)"', wide))
    assert len(marks) >= LINES
    assert len(set(re.findall(r"stroke-dasharray: ([^;\"]+)", wide))) >= 3


def test_one_step_and_missing_numbers_are_drawn() -> None:
    one = Panel("Loss", "nats", np.array([7.0]), {"a": np.array([2.0]), "b": np.array([np.nan])})
    wide, _ = draw(one)
    assert "a 2.00" in texts(wide)
    assert not [text for text in texts(wide) if text.startswith("b ")]
    gap = Panel("Loss", "nats", np.arange(1.0, 4), {"a": np.array([2.0, np.nan, 3.0])})
    assert "nan" not in draw(gap)[0].lower()


def test_a_line_through_every_other_step_is_drawn_however_it_is_thinned() -> None:
    steps = np.arange(1, 401)
    values = np.random.default_rng(0).normal(size=400)
    series = {"odd": np.where(steps % 2 == 1, values, np.nan), "even": np.where(steps % 2 == 0, values, np.nan)}
    for order, drawn in ((["odd", "even"], 2), (["elsewhere"], 1)):  # two lines, or a band with two edges
        wide, _ = draw(Panel("Loss", "nats", steps, series), order=order, points=200)
        assert len([path for path in re.findall(r' d="([^"]*)"', wide) if path.count("L") > 150]) == drawn


def test_a_band_of_lines_without_a_number_is_left_out() -> None:
    steps, nothing = np.arange(1.0, 4), np.full(3, np.nan)
    wide, _ = draw(Panel("Loss", "nats", steps, {"a": steps} | {f"d{number}": nothing for number in range(20)}))
    assert "a 3.00" in texts(wide)
    assert not [text for text in texts(wide) if "others" in text]
    assert "nan" not in wide.lower()


def test_colours_are_the_pages_and_ids_are_unique_on_it() -> None:
    one, two = draw(panel(2), name="one"), draw(panel(2), name="two")
    found = [name for svg in (*one, *two) for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(found) == len(set(found))
    for svg in (*one, *two):
        assert not re.search(r"#0102\d\d|#010203", svg)
        assert {"var(--ink)", "var(--line-0)", "var(--line-1)"} <= set(re.findall(r"var\(--[\w-]+\)", svg))
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) <= ids


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert draw(panel(3)) == draw(panel(3))


def test_names_are_escaped_and_no_formula() -> None:
    odd = Panel("Loss", "nats", np.array([1.0, 2.0]), {"<b>$x$&": np.array([1.0, 2.0])})
    wide, _ = draw(odd)
    assert "<b>" not in wide
    assert "<b>$x$& 2.00" in texts(wide)


def test_a_long_name_is_cut_so_that_the_plot_keeps_its_room() -> None:
    long = Panel("Loss", "nats", np.array([1.0, 2.0]), {"x" * 80: np.array([1.0, 2.0])})
    for svg in draw(long):
        (label,) = [text for text in texts(svg) if text.startswith("xx")]
        assert label.endswith("\N{HORIZONTAL ELLIPSIS} 2.00")
