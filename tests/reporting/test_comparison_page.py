"""The page of comparisons: whole, valid, escaped, small, and fit for wide and narrow screens."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doge_ds import __version__
from doge_ds.errors import ConfigError, RunError
from doge_ds.reporting import templates
from doge_ds.reporting.cells import NOTHING
from doge_ds.reporting.comparison_page import render_comparison_page, write_comparison_page
from doge_ds.reporting.summaries import Summary, SummaryFile
from tests.reporting.browser import CHROMIUM, start_browser
from tests.reporting.comparisons import DOMAINS, METHODS, summary_of, write_summary
from tests.reporting.run_directories import names
from tests.reporting.test_page import _OVERLAPS, LARGEST, Outline

WRITTEN = datetime(2025, 1, 2, 3, 4, tzinfo=UTC)
TWO: dict[str, str | None] = {"uniform": None, "doge": "doge"}  # each chart takes a fifth of a second
GROUPS = {"trained on": DOMAINS[:3], "never seen": DOMAINS[3:]}


def page_of(*summaries: dict[str, Any]) -> str:
    files = [
        SummaryFile(Path(f"{summary['name']}/summary.json"), summary["name"], Summary.model_validate(summary))
        for summary in summaries
    ]
    return render_comparison_page(files, WRITTEN)


def test_the_answer_comes_first_and_the_data_last() -> None:
    outline = Outline(page_of(summary_of("first", groups=GROUPS, tasks=["sciq"])))
    assert outline.texts["h2"] == ["first", "Data"]
    assert outline.texts["h3"] == [
        *("Domains", "Few-shot tasks", "Weights"),
        *("How doge was learned", "How doremi was learned", "How mu 0.1 was learned"),
        *("Cost", "Where the runs lie"),
    ]
    header, answer, *_ = outline.texts["p"]
    assert header.startswith("Comparison first. Written 2025-01-02 03:04 UTC")
    assert answer.startswith('Over "trained on" (3 domains), doge has the lowest average log-perplexity of 4 mixtures')
    assert answer.endswith("The interval excludes 0.")


def test_every_table_and_chart_has_its_words() -> None:
    outline = Outline(page_of(summary_of(groups=GROUPS, tasks=["sciq"])))
    assert len(outline.texts["caption"]) == len(outline.texts["table"])
    captions = " ".join(outline.texts["caption"])
    for words in (
        *('Average over "trained on" (3 domains)', 'Average over "never seen" (2 domains)', "What was compared"),
        *("Difference in log-perplexity to uniform", "Log-perplexity of each domain", "Bits per byte"),
        *("The worst domain of each mixture", "Few-shot accuracy", "Weights that bases are trained on"),
        *("Weights at the proxies' last step", "How far mean weights lie apart", "Cosine between the gradients"),
        *("Floating-point operations", "Wall time (2 cores, cpu)", "Tokens read", "Run directories"),
    ):
        assert words in captions
    assert all(found.get("scope") in ("col", "row") for tag, found in outline.attributes if tag == "th")
    images = [found["aria-label"] or "" for _, found in outline.attributes if found.get("role") == "img"]
    assert len(images) == 2 * (2 + 3)  # differences of groups and domains, and weights of 3 proxies; wide and narrow
    assert sum(text.startswith("Dot chart. Differences in log-perplexity") for text in images) == 4


def test_nothing_points_outside_and_ids_are_unique() -> None:
    page = page_of(summary_of("one", methods=TWO, tasks=["sciq"]), summary_of("two", methods=TWO, seeds=(0, 1)))
    outline = Outline(page)
    for tag, found in outline.attributes:
        for key in ("src", "href", "xlink:href"):
            assert (found.get(key) or "#").startswith(("#", "data:")), (tag, found)
    assert "<script" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    ids = [found["id"] for _, found in outline.attributes if "id" in found]
    assert len(ids) == len(set(ids))


def test_several_comparisons_stand_side_by_side_at_the_top() -> None:
    one, two = summary_of("one", groups=GROUPS), summary_of("two", seeds=(4,), methods=TWO)
    outline = Outline(page_of(one, two))
    assert outline.texts["h2"] == ["All comparisons", "one", "two", "Data"]
    table = outline.texts["table"][0]
    rows = [line.split("\n") for line in re.sub(r"\n+", "\n", table).split("\n")]
    assert [sum(group in line[0] for line in rows) for group in GROUPS] == [4, 4]
    assert "two" in table
    mean = two["mixtures"]["doge"]["average_log_perplexity"]["all"]["mean"]
    assert f"{mean:.4f}" in table
    assert "All comparisons" not in Outline(page_of(one)).texts["h2"]


def test_comparisons_without_bases_stand_beside_the_others_by_their_weights() -> None:
    one, two = summary_of("one"), summary_of("sweep", without_bases=list(METHODS))
    averages, weights = Outline(page_of(one, two)).texts["table"][:2]
    assert "sweep" not in averages
    assert two["mixtures"]["doge"]["distance_from_uniform"]["mean"] > 0
    for summary in (one, two):
        for name in ("doge", "doremi", "mu 0.1"):
            mean = summary["mixtures"][name]["distance_from_uniform"]["mean"]
            assert re.search(rf"{summary['name']}{name}[\d. to()]*{mean:.4f} ", weights), (name, mean)
    both = Outline(page_of(two, summary_of("sweep 2", without_bases=list(METHODS)))).texts
    assert both["h2"][0] == "All comparisons"
    assert "from uniform" in both["table"][0]


def test_names_from_files_are_escaped() -> None:
    evil = '<script>alert("x")</script>&amp;'
    methods: dict[str, str | None] = {"<i>flat": None, "<b>doge": "doge", "<u>doremi": "<s>"}
    summary = summary_of("<em>", domains=("a", evil), methods=methods, without_bases=(), groups={"<q>": ["a", evil]})
    summary["mixtures"]["<b>doge"]["warnings"] = ["<blink>"]
    summary["machine"] = {"cores": 2, "devices": "<video>"}
    outline = Outline(page_of(summary))
    tags = {"script", "i", "b", "u", "s", "em", "q", "blink", "video"}
    assert not tags & {tag for tag, _ in outline.attributes}
    assert evil in outline.texts["th"]
    assert "How <b>doge was learned" in outline.texts["h3"]
    assert "<blink>" in outline.texts["p"]


def test_one_seed_says_that_nothing_is_shown() -> None:
    outline = Outline(page_of(summary_of(seeds=(4,))))
    assert "with one seed there is no interval, so nothing is shown." in outline.texts["p"][1]
    assert not any("excludes 0" in text for text in outline.texts["p"])


def test_mixtures_without_bases_show_their_weights() -> None:
    outline = Outline(page_of(summary_of(without_bases=list(METHODS))))
    assert outline.texts["p"][1] == "No base of this comparison has been measured on held-out text."
    assert "Domains" not in outline.texts["h3"]
    assert {"Weights", "How doge was learned", "Cost"} <= set(outline.texts["h3"])


def test_an_incomplete_comparison_says_so() -> None:
    summary = summary_of()
    summary["complete"] = False
    doge = summary["mixtures"]["doge"]
    doge |= dict.fromkeys(("log_perplexity", "average_log_perplexity", "differences", "worst_domain", "bits_per_byte"))
    doge["cost"]["base"] = None
    summary["mixtures"]["doremi"] = {"against": "uniform", "method": "doremi"}
    outline = Outline(page_of(summary, summary_of("other", methods=TWO)))
    assert any(text.startswith("This comparison is not finished. Of 3 seeds, ") for text in outline.texts["p"])
    assert "doremi has learned no weights yet." in outline.texts["p"]
    assert "not finished" in outline.texts["table"][0]


def test_a_base_that_diverged_is_a_dash_and_no_winner() -> None:
    summary = summary_of(methods={"uniform": None, "doge": "doge"})
    nothing = {"by_seed": {"0": None, "1": None, "2": None}, "mean": None, "low": None, "high": None}
    doge = summary["mixtures"]["doge"]
    doge["log_perplexity"] = doge["bits_per_byte"] = dict.fromkeys(DOMAINS, nothing)
    doge["average_log_perplexity"] = {"all": nothing}
    doge["differences"] = {"domains": dict.fromkeys(DOMAINS, nothing), "groups": {"all": nothing}}
    doge["worst_domain"] = None
    outline = Outline(page_of(summary))
    assert outline.texts["p"][1].startswith("Only uniform has an average log-perplexity")
    assert "Without a finite average of every seed, as where a base diverged: doge." in outline.texts["p"]
    assert NOTHING in outline.texts["td"]


OPTIONAL = [
    *("last_weights", "log_perplexity", "average_log_perplexity", "worst_domain", "differences", "bits_per_byte"),
    *("accuracy", "distance_from_uniform", "stability", "gram_cosines", "trajectory"),
]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(missing=st.sets(st.tuples(st.sampled_from(list(TWO)), st.sampled_from(OPTIONAL)), max_size=16))
def test_whatever_is_missing_the_page_is_whole(missing: set[tuple[str, str]]) -> None:
    summary = summary_of(
        domains=("a", "b"), seeds=(0, 1), methods=TWO, without_bases=(), tasks=["sciq"], steps=(10, 20)
    )
    for name, key in missing:
        summary["mixtures"][name][key] = None
    outline = Outline(page_of(summary))
    assert outline.texts["h2"] == ["small", "Data"]
    assert len(outline.texts["caption"]) == len(outline.texts["table"])


def test_warnings_of_a_proxy_are_shown_once() -> None:
    summary = summary_of()
    summary["mixtures"]["doremi"]["warnings"] = ["seed 0, step 40: the weights have collapsed"] * 2
    summary["mixtures"]["doge"] |= {"trajectory": None, "gram_cosines": None}
    page = page_of(summary)
    assert page.count("the weights have collapsed") == 1
    assert "How doge was learned" not in page


def test_many_mixtures_and_domains_fit_and_nothing_is_left_out_in_silence() -> None:
    methods = {"uniform": None, **{f"mu {number}": "doge" for number in range(30)}}
    sweep = summary_of("sweep", domains=names(12), methods=methods, without_bases=list(methods)[1:])
    page = page_of(sweep)
    assert len(page.encode()) < LARGEST
    outline = Outline(page)
    assert "Charts and heat maps are of the first 12 of 30 learned mixtures." in " ".join(outline.texts["p"])
    assert {f"mu {number}" for number in range(30)} <= set(outline.texts["th"])
    large = summary_of("large", domains=names(200), methods=dict(list(METHODS.items())[:4]))
    page = page_of(large)
    assert len(page.encode()) < LARGEST
    notes = " ".join(Outline(page).texts["p"])
    assert "The charts show 10 of 200 domains" in notes


def test_a_page_that_would_be_too_large_is_thinned_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = summary_of(methods=TWO, steps=range(1, 121))
    whole = page_of(summary)
    monkeypatch.setattr(templates, "LARGEST", len(whole.encode()) - 1)
    smaller = page_of(summary)
    assert len(smaller) < len(whole)
    assert Outline(smaller).texts["h3"] == Outline(whole).texts["h3"]
    monkeypatch.setattr(templates, "LARGEST", 1000)
    with pytest.raises(ConfigError, match=r"1 comparison: make a page above .* report fewer of them together"):
        page_of(summary)


def test_the_file_is_whole_and_replaces_nothing_but_a_report(tmp_path: Path) -> None:
    summary, output = write_summary(tmp_path, summary_of(methods=TWO, seeds=(0,))), tmp_path / "report.html"
    write_comparison_page([summary], output)
    assert f'<meta name="generator" content="doge_ds {__version__}">' in output.read_text()
    output.write_text(output.read_text().replace(f"doge_ds {__version__}", "doge_ds 0.0.1"))
    write_comparison_page([summary], output)
    assert f"doge_ds {__version__}" in output.read_text()
    output.write_text("my thesis")
    with pytest.raises(ConfigError, match=r"report.html: exists and is no report of ours; name another file"):
        write_comparison_page([summary], output)
    assert output.read_text() == "my thesis"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_comparison_page([summary], tmp_path / "no/where.html")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_summary_leaves_the_old_page(tmp_path: Path) -> None:
    summary, output = write_summary(tmp_path, summary_of(methods=TWO, seeds=(0,))), tmp_path / "report.html"
    write_comparison_page([summary], output)
    before = output.read_bytes()
    summary.write_text(json.dumps({"version": 2}))
    with pytest.raises(RunError, match=r"summary.json: version: is damaged"):
        write_comparison_page([summary], output)
    assert output.read_bytes() == before


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; it is not part of the set-up")
def test_a_browser_shows_it_without_overflow_network_or_complaint(tmp_path: Path) -> None:
    small = write_summary(tmp_path, summary_of("small", groups=GROUPS, tasks=["arc_easy", "sciq"]))
    one_seed = write_summary(tmp_path, summary_of("one", seeds=(4,), methods=TWO))
    methods: dict[str, str | None] = {
        "W" * 70: None,
        **{f"a rather long name of mixture {n}": "doge" for n in range(9)},
    }
    domains = [*names(23), "m" * 70]
    large = write_summary(tmp_path, summary_of("a_comparison_with_" + "z" * 60, domains=domains, methods=methods))
    pages = {"small": [small], "one": [one_seed], "several": [small, one_seed, large]}
    for name, summaries in pages.items():
        write_comparison_page(summaries, tmp_path / f"{name}.html")
    with start_browser(tmp_path / "profile") as browser:
        for name in pages:
            for width in (1280, 400):
                browser.open(tmp_path / f"{name}.html", width)
                assert browser.evaluate("innerWidth") == width
                assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
                shown = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0)"
                figures = browser.evaluate("document.querySelectorAll('figure').length")
                assert browser.evaluate(f"{shown}.length") == figures > 0
                assert browser.evaluate(_OVERLAPS.replace("SHOWN", shown)) == [], (name, width)
                assert browser.evaluate(_CUT_OFF.replace("SHOWN", shown)) == [], (name, width)
        assert browser.complaints == []
        assert set(browser.requests) == {(tmp_path / f"{name}.html").resolve().as_uri() for name in pages}


# Texts that reach out of a drawing of dots by more than a pixel.
_CUT_OFF = """
SHOWN.flatMap(svg => {
  const box = svg.getBoundingClientRect();
  const isOfDots = svg.closest('[role=img]').ariaLabel.startsWith('Dot chart');
  return !isOfDots ? [] : [...svg.querySelectorAll('text')].filter(t => {
    const place = t.getBoundingClientRect();
    return place.left < box.left - 1 || place.right > box.right + 1 || place.bottom > box.bottom + 1;
  }).map(t => t.textContent.trim());
})
"""
