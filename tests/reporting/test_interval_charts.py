"""Dots with whiskers: what is drawn of the numbers."""

import re
from xml.etree import ElementTree

import pytest

from doge_ds.reporting.cells import MINUS
from doge_ds.reporting.interval_charts import IntervalPanel, draw_intervals
from doge_ds.reporting.summaries import Estimate
from doge_ds.reporting.svg import NARROW, WIDE

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(found.itertext()).strip() for found in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def draw(**rows: Estimate) -> tuple[str, str]:
    chart = draw_intervals("c", [IntervalPanel("Average", rows)], "nats per token", "described", "caption")
    assert chart is not None
    return chart.wide, chart.narrow


BETTER = Estimate(by_seed={0: -0.031, 1: -0.027, 2: -0.029}, mean=-0.029, low=-0.034, high=-0.024)
UNSURE = Estimate(by_seed={0: -0.013, 1: 0.007}, mean=-0.003, low=-0.13, high=0.124)


def test_each_row_has_its_name_and_number_and_on_wide_drawings_its_interval() -> None:
    wide, narrow = draw(doge=BETTER, doremi=UNSURE)
    interval = f"({MINUS}0.0340 to {MINUS}0.0240)"
    assert {"Average", "doge", "doremi", "nats per token", f"{MINUS}0.0290 {interval}"} <= set(texts(wide))
    assert {"doge", "doremi", f"{MINUS}0.0290", f"{MINUS}0.0030"} <= set(texts(narrow))
    assert f'viewBox="0 0 {WIDE} ' in wide
    assert f'viewBox="0 0 {NARROW} ' in narrow


def test_a_whisker_reaches_from_low_to_high_on_the_axis_of_the_ticks() -> None:
    wide, _ = draw(doremi=UNSURE)
    ends = [
        tuple(map(float, found)) for found in re.findall(r'd="M (\S+) \S+ *L (\S+) \S+ *"[^>]*stroke-width: 2', wide)
    ]
    (whisker,) = ends
    zero = float(re.findall(r'd="M (\S+) \S+ *L \1 \S+ *"[^>]*stroke: var\(--ink\)', wide)[0])
    assert (zero - whisker[0]) / (whisker[1] - zero) == pytest.approx(0.13 / 0.124, rel=0.01)


def test_what_excludes_0_differs_without_its_colour() -> None:
    """Dots are filled with their own colour, or with the page's."""
    fills = [re.findall(r'<use [^>]*style="fill: ([^;"]+)', draw(row=row)[0])[-1] for row in (BETTER, UNSURE)]
    assert fills == ["var(--line-0)", "var(--paper)"]


def test_one_seed_has_a_dot_and_no_whisker() -> None:
    wide, narrow = draw(doge=Estimate(by_seed={4: -0.0123}, mean=-0.0123))
    for svg in (wide, narrow):
        assert f"{MINUS}0.0123" in texts(svg)
        assert "stroke-width: 2" not in svg


def test_nothing_known_is_no_chart_and_rows_without_a_number_are_left_out() -> None:
    lost = Estimate(by_seed={0: None}, mean=None)
    assert draw_intervals("c", [IntervalPanel("p", {"a": lost}), IntervalPanel("q", {})], "x", "d", "c") is None
    wide, _ = draw(doge=BETTER, lost=lost)
    assert "lost" not in texts(wide)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [0.0, 1e-12, -3e-7, 5e18, 2e299, -1.7e308])
def test_numbers_of_any_size_are_drawn_or_left_out(value: float) -> None:
    row = Estimate(by_seed={0: value, 1: value}, mean=value, low=value, high=value)
    wide, narrow = draw(doge=BETTER, odd=row)
    for svg in (wide, narrow):
        assert ("odd" in texts(svg)) == (abs(value) < 1e300)
        assert "nan" not in svg.lower()


def test_names_are_escaped_and_cut() -> None:
    wide, narrow = draw(**{"<b>$x$&": BETTER, "y" * 200: BETTER})
    assert "<b>" not in wide
    assert "<b>$x$&" in texts(wide)
    for svg in (wide, narrow):
        assert next(text for text in texts(svg) if text.startswith("yy")).endswith("\N{HORIZONTAL ELLIPSIS}")


def test_panels_share_one_scale() -> None:
    panels = [IntervalPanel("one", {"doge": BETTER}), IntervalPanel("two", {"doremi": UNSURE})]
    chart = draw_intervals("c", panels, "nats", "described", "caption")
    assert chart is not None
    ticks = [text for text in texts(chart.wide) if re.fullmatch(rf"{MINUS}?[\d.]+", text)]
    assert len(ticks) % 2 == 0
    assert ticks[: len(ticks) // 2] == ticks[len(ticks) // 2 :]
