"""The page: whole, valid, escaped, small, and fit for wide and narrow screens."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from doge_ds.errors import ConfigError
from doge_ds.reporting import templates
from doge_ds.reporting.page import domain_order, render_page
from doge_ds.reporting.run_files import read_runs
from tests.reporting.browser import CHROMIUM, start_browser
from tests.reporting.run_directories import diverged, edit_metrics, make_base, make_proxy, names, write

WRITTEN = datetime(2025, 1, 2, 3, 4, tzinfo=UTC)
VOID = {"meta", "link", "wbr"}
LARGEST = 2_000_000  # bytes


class Outline(HTMLParser):
    """Checks that tags are closed in order and collects what stands where."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


def page_of(*paths: Path) -> str:
    return render_page(read_runs(paths), WRITTEN)


def three_runs(path: Path) -> list[Path]:
    """A proxy whose target is no train domain, and two bases with results."""
    mixture = {"python": 0.5, "yaml": 0.5}
    perplexities: dict[str, float | None] = {"python": 20.0, "yaml": 30.0, "prose": 300.0}
    return [
        make_proxy(path / "proxy", ["python", "yaml"], target=["prose"]),
        make_base(path / "base_uniform", mixture, perplexities),
        make_base(path / "base_doge", {"python": 0.2, "yaml": 0.8}, {**perplexities, "prose": 280.0}),
    ]


def test_the_answer_comes_first_and_the_configuration_last(tmp_path: Path) -> None:
    outline = Outline(page_of(*three_runs(tmp_path)))
    assert outline.texts["h2"] == ["The mixture", "How it came about", "Perplexity", "Configuration", "Data"]
    assert outline.texts["h3"] == ["proxy", "base_uniform", "base_doge"]
    assert "aimed at prose, never trained on" in outline.texts["p"][1]
    assert outline.texts["time"] == ["2025-01-02 03:04 UTC"]


def test_tables_have_captions_and_scopes_and_charts_their_numbers_in_words(tmp_path: Path) -> None:
    outline = Outline(page_of(*three_runs(tmp_path)))
    assert len(outline.texts["caption"]) == len(outline.texts["table"])
    assert all(outline.texts["caption"])
    assert all(found.get("scope") in ("col", "row") for tag, found in outline.attributes if tag == "th")
    images = [found["aria-label"] or "" for _, found in outline.attributes if found.get("role") == "img"]
    assert len(images) == 8  # weights and losses of the proxy, losses of each base; each wide and narrow
    assert any(text.startswith("Line chart of domain weights") and "yaml from" in text for text in images)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_held_out_perplexities_during_training_are_a_chart_where_a_run_has_them(tmp_path: Path) -> None:
    proxy, base, _ = three_runs(tmp_path)
    title = "Held-out log-perplexity during training"
    assert title not in page_of(proxy, base)
    key = "held_out_log_perplexity"
    for path, line in ((proxy, 1), (proxy, 3), (base, 1)):  # not on every logged step
        edit_metrics(path, line, **{key: 5 - line, f"{key}/yaml": 5.25 - line, f"{key}/python": None})
    outline = Outline(page_of(proxy, base))
    images = [found["aria-label"] or "" for _, found in outline.attributes if found.get("role") == "img"]
    described = [text for text in images if text.startswith("Line chart of held-out log-perplexities, step ")]
    assert len(described) == 4  # of two runs, wide and narrow
    assert described[0].endswith("step 10 to 40: yaml from 4.25 to 2.25.")
    assert f"{title}, on the same windows of each domain every time." in outline.texts["figcaption"]
    for count in ("2 of 4", "1 of 2"):
        assert f"{count} logged steps have a number that is not finite" in " ".join(outline.texts["p"])


def test_nothing_points_outside_and_ids_are_unique(tmp_path: Path) -> None:
    page = page_of(*three_runs(tmp_path))
    outline = Outline(page)
    for tag, found in outline.attributes:
        for key in ("src", "href", "xlink:href"):
            assert (found.get(key) or "#").startswith(("#", "data:")), (tag, found)
    assert "<script" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    ids = [found["id"] for _, found in outline.attributes if "id" in found]
    assert len(ids) == len(set(ids))


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&amp;'
    proxy = make_proxy(tmp_path / "<i>run", ["a", evil], target=[evil])
    base = make_base(tmp_path / "<b>base", {"a": 0.5, evil: 0.5}, {evil: 3.0, "a": 2.0})
    page = page_of(proxy, base)
    outline = Outline(page)
    assert not {"script", "i", "b"} & {tag for tag, _ in outline.attributes}
    assert evil in outline.texts["th"]
    assert "<i>run" in outline.texts["h3"]


@pytest.mark.parametrize("lines", [0, 1])
def test_a_run_that_has_just_begun(tmp_path: Path, lines: int) -> None:
    proxy = make_proxy(tmp_path / "proxy", ["a", "b"], logged=(10,)[:lines])
    base = make_base(tmp_path / "base", {"a": 0.5, "b": 0.5}, logged=(20,)[:lines])
    outline = Outline(page_of(proxy, base))
    paragraphs = " ".join(outline.texts["p"])
    assert paragraphs.count("Nothing has been logged yet.") == (0 if lines else 2)
    assert ("running mean is b" in paragraphs) == bool(lines)
    assert "is not finished" in paragraphs
    assert len(outline.texts.get("figure", [])) == 3 * lines
    assert "Not measured: base" in paragraphs


def test_a_run_whose_every_number_is_null(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "proxy", ["a", "b"], target="all", logged=(10, 20))
    for line in (0, 1):
        keys = ("loss", "loss/a", "loss/b", "weight/a", "weight/b", "score/a", "learning_rate", "tokens", "seconds")
        edit_metrics(path, line, **dict.fromkeys(keys), gram=[[None] * 2] * 2)
    outline = Outline(page_of(path))
    assert "2 of 2 logged steps have a number that is not finite" in " ".join(outline.texts["p"])
    assert "No step with a finite Gram matrix has been logged." in outline.texts["p"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_numbers_that_no_axis_can_hold_and_results_without_any(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy", ["a", "b"], target="all", logged=(10, 20, 40))
    text = (proxy / "metrics.jsonl").read_text()
    for literal in ("Infinity", "NaN", "1.7e308", "9" * 400):
        changed = re.sub(
            r'"(weight/a|loss/a|learning_rate|tokens|seconds)": [^,}]*', rf'"\1": {literal}', text, count=7
        )
        (proxy / "metrics.jsonl").write_text(changed)
        base = make_base(tmp_path / f"base{len(literal)}", {"a": 0.5, "b": 0.5}, {"a": 3.0})
        write(base / "results.json", diverged(["a"]))
        paragraphs = " ".join(Outline(page_of(proxy, base)).texts["p"])
        assert "2 of 3 logged steps have a number that is not finite" in paragraphs
        assert "gives no finite likelihood for a" in paragraphs


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_proxy_whose_lines_have_some_of_the_domains_only(tmp_path: Path) -> None:
    """As with domains_per_step and update_every: keys and the Gram matrix of a line are those of its domains."""
    domains = names(12)
    path = make_proxy(tmp_path / "proxy", domains, target=["t"], steps=60, logged=range(1, 61))
    lines = [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        here = [*(name for place, name in enumerate(domains) if place % 3 == number % 3), "t"]
        rows = [[*domains, "t"].index(name) for name in here]
        line["gram"] = [[line["gram"][i][j] for j in rows] for i in rows]
        line["gram_rows"] = here
        for key in [key for key in line if key.startswith(("loss/", "score/", "gradient_norm/"))]:
            if key.partition("/")[2] not in here or (number % 2 and not key.startswith("loss/")):
                del line[key]
        if number % 2:
            del line["gram"], line["gram_rows"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outline = Outline(page_of(path))
    notes = " ".join(outline.texts["p"])
    assert "not finite" not in notes
    assert "Each pair's is over the steps that have both: 0 to 10 of them." in notes
    assert {*domains, "t"} <= set(outline.texts["th"])


def test_two_hundred_domains_fit_and_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    domains = names(200)
    proxies = [
        make_proxy(tmp_path / name, domains, target=["outside"], steps=900, logged=range(30, 901, 30))
        for name in ("p", "q")
    ]
    uniform = dict.fromkeys(domains, 1 / 200)
    bases = [
        make_base(tmp_path / name, uniform, dict.fromkeys(domains, 9.0), steps=4000, logged=range(10, 4001, 10))
        for name in ("a", "b")
    ]
    page = page_of(*proxies, *bases)
    assert len(page.encode()) < LARGEST
    outline = Outline(page)
    notes = " ".join(outline.texts["p"])
    assert "The charts show 10 of 201 domains" in notes
    assert "Shown are 40 of 201 rows" in notes
    assert "Lines are drawn through 120 of 400 logged steps" in notes
    assert outline.texts["summary"].count("The other 170 rows") == 4
    assert set(domains) <= set(outline.texts["th"])


def test_eight_runs_fit(tmp_path: Path) -> None:
    paths = [make_proxy(tmp_path / f"p{number}", names(22), steps=800, logged=range(8, 801, 8)) for number in range(8)]
    assert len(page_of(*paths).encode()) < LARGEST


def test_a_domain_looks_the_same_in_every_chart(tmp_path: Path) -> None:
    runs = read_runs(three_runs(tmp_path))
    assert domain_order(runs) == ["prose", "yaml", "python"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; it is not part of the set-up")
def test_a_browser_shows_it_without_overflow_network_or_complaint(tmp_path: Path) -> None:
    large = [
        make_proxy(tmp_path / "a_run_with_a_rather_long_name_indeed", names(60), target=["x" * 70]),
        make_base(tmp_path / "base", dict.fromkeys(names(60), 1 / 60), {"x" * 70: 1e12, "domain_000": None}),
    ]
    pages = {}
    for name, runs in (("small", three_runs(tmp_path)), ("large", large)):
        pages[name] = tmp_path / f"{name}.html"
        pages[name].write_text(page_of(*runs), encoding="utf-8")
    with start_browser(tmp_path / "profile") as browser:
        for page in pages.values():
            for width in (1280, 768, 400):
                browser.open(page, width)
                assert browser.evaluate("innerWidth") == width
                assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), (page, width)
                shown = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0)"
                # Every chart once, its smallest text no smaller than 10 pixels on the screen.
                assert browser.evaluate(f"{shown}.length") == browser.evaluate(
                    "document.querySelectorAll('figure').length"
                )
                scale = "s.getBoundingClientRect().width / s.viewBox.baseVal.width"
                assert browser.evaluate(f"Math.min(...{shown}.map(s => 11 * {scale})) >= 10")
                overlapping = browser.evaluate(_OVERLAPS.replace("SHOWN", shown))
                assert overlapping == [], (page, width)
        assert browser.complaints == []
        assert set(browser.requests) == {page.resolve().as_uri() for page in pages.values()}


# Pairs of texts in one chart whose boxes overlap by more than a pixel each way.
_OVERLAPS = """
SHOWN.flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent.trim(), t.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3).map(([b]) => a + ' | ' + b));
})
"""


def test_a_page_that_would_be_too_large_is_thinned_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_proxy(tmp_path / name, steps=900, logged=range(1, 901)) for name in ("one", "two", "three")]
    whole = page_of(*paths)
    monkeypatch.setattr(templates, "LARGEST", len(whole.encode()) - 1)
    smaller = page_of(*paths)
    assert len(smaller) < len(whole)
    assert Outline(smaller).texts["h1"] == Outline(whole).texts["h1"]
    monkeypatch.setattr(templates, "LARGEST", 1000)
    with pytest.raises(ConfigError, match=r"3 runs: make a page above .* report fewer of them together"):
        page_of(*paths)


def test_keys_to_accounts_are_not_published(tmp_path: Path) -> None:
    for path in (make_proxy(tmp_path / "proxy"), make_base(tmp_path / "base", {"python": 0.5, "yaml": 0.5})):
        values = json.loads((path / "config.json").read_text())
        values["deepspeed"] |= {"comet": {"enabled": True, "api_key": "SECRET"}, "bf16": {"enabled": False}}
        (path / "config.json").write_text(json.dumps(values))
        page = page_of(path)
        assert "SECRET" not in page
        assert "deepspeed.<wbr>bf16.<wbr>enabled" in page


def test_warnings_and_the_selection_of_a_proxy_are_shown(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "p")
    metrics = proxy / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[1]["warnings"] = ["the weights have collapsed to <1.2> domains; raise doge.mu"]
    lines[3] |= {"effective_domains": 2.345, "weight_drift": 0.0123}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    effects = {"wte.weight": 31.5, "h.0.ln_1.bias": 2.25, "h.0.ln_1.weight": 7.0}
    selection = {"measured_steps": 8, "selected": ["h.0.ln_1.bias"], "share_of_parameters": 0.0123}
    (proxy / "selection.json").write_text(json.dumps({**selection, "cancellation_effect": effects}))
    page = render_page(read_runs([proxy]), WRITTEN)
    assert "After step 20, the weights have collapsed to &lt;1.2&gt; domains; raise doge.mu." in page
    plain = re.sub(r"<wbr>|<[^>]*>", "", page)
    assert "Cancellation effect of each tensor over 8 steps; scores come from those selected, 1.2% of" in plain
    places = [plain.index(text) for text in ("h.0.ln_1.bias selected", "h.0.ln_1.weight7.00", "wte.weight31.50")]
    assert places == sorted(places)
    assert "effective number of domains, exp(entropy), at the end2.35" in plain or "at the end2.34" in plain
    assert "total variation0.0123" in plain
