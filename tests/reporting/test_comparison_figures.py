"""Charts of a comparison: what is in them, and the files that they become."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from doge_ds.errors import ConfigError, RunError
from doge_ds.reporting.cells import MINUS, signed
from doge_ds.reporting.comparison_figures import average_chart, domain_chart, trajectory_chart, write_figures
from doge_ds.reporting.summaries import Summary
from tests.reporting.comparisons import DOMAINS, METHODS, summary_of, write_summary
from tests.reporting.run_directories import names
from tests.reporting.test_interval_charts import SVG, texts


def read(**options: Any) -> Summary:
    return Summary.model_validate(summary_of(**options))


def test_averages_have_a_panel_for_each_group_and_domains_for_each_mixture() -> None:
    summary = read(groups={"seen": DOMAINS[:3], "unseen": DOMAINS[3:]})
    chart = average_chart(summary, "a")
    assert chart is not None
    found = texts(chart.wide)
    assert {'Average over "seen" (3 domains)', 'Average over "unseen" (2 domains)'} <= set(found)
    assert found.count("doge") == found.count("natural") == 2
    difference = summary.mixtures["doge"].difference("seen")
    assert difference is not None
    assert signed(difference.mean or 0, 4) in texts(chart.narrow)
    assert chart.caption.startswith("Differences in log-perplexity of averages, to uniform: mean, 95% interval")
    by_domain = domain_chart(summary, "d")
    assert by_domain is not None
    assert {"natural", "doge", "doremi", *DOMAINS} <= set(texts(by_domain.wide))


def test_one_seed_has_no_intervals_and_no_base_no_chart() -> None:
    chart = average_chart(read(seeds=(0,)), "a")
    assert chart is not None
    assert "no intervals with one seed" in chart.caption
    assert "filled" not in chart.caption
    none = read(without_bases=list(METHODS))
    assert average_chart(none, "a") is None
    assert domain_chart(none, "d") is None


def test_rows_that_are_too_many_are_counted() -> None:
    chart = domain_chart(read(domains=names(40)), "d")
    assert chart is not None
    assert "Left out: 60 more rows." in chart.caption  # of 3 mixtures and 40 domains


def test_weights_over_the_steps() -> None:
    summary = read()
    doge = summary.mixtures["doge"]
    chart = trajectory_chart("doge", doge, summary.domains, "w", 240)
    assert doge.trajectory is not None
    last = doge.trajectory.mean_weight["news"][-1]
    assert f"news {last:#.3g}" in texts(chart.wide)
    assert {"Weight at each step", "Running mean, which becomes the mixture"} <= set(texts(chart.narrow))
    assert chart.description.startswith("Line chart of domain weights, step 10 to 600: ")


def test_files_stand_alone(tmp_path: Path) -> None:
    files = write_figures(write_summary(tmp_path, summary_of("first")), tmp_path / "new/figures")
    assert [file.stem for file in files] == [
        "first_differences",
        "first_differences_of_domains",
        *(f"first_weights_{name}" for name in ("doge", "doremi", "mu_0_1")),
        *(f"first_who_helps_whom_{name}" for name in ("doge", "doremi", "mu_0_1")),
    ]
    assert sorted(files) == sorted((tmp_path / "new/figures").iterdir())
    for file in files:
        text = file.read_text()
        root = ElementTree.fromstring(text)
        assert "var(" not in text
        assert root.get("width") == root.get("viewBox", "").split()[2]
        assert root[0].tag == f"{SVG}title"
        assert root[1].get("fill") == "#ffffff"
    heat = texts(files[5].read_text())
    assert heat.count("1") == len(DOMAINS)
    assert set(DOMAINS) <= set(heat)
    assert [text for text in heat if re.fullmatch(rf"{MINUS}?\.\d\d", text)]


def test_the_same_summary_gives_the_same_bytes(tmp_path: Path) -> None:
    summary = write_summary(tmp_path, summary_of(seeds=(0, 1)))
    before = [file.read_bytes() for file in write_figures(summary, tmp_path / "figures")]
    assert [file.read_bytes() for file in write_figures(summary, tmp_path / "figures")] == before


def test_names_neither_leave_the_folder_nor_break_a_file(tmp_path: Path) -> None:
    methods: dict[str, str | None] = {"../up": None, '<b>&"\x1b': "doge", "<b>&'\x1b": "doge", "var(--ink)": "doge"}
    written = summary_of("a/b", domains=("<script>", "var(--gone)", "z" * 90), methods=methods, without_bases=())
    file = tmp_path / "summary.json"
    write_summary(tmp_path, written).replace(file)
    files = write_figures(file, tmp_path / "figures")
    assert {found.parent for found in files} == {tmp_path / "figures"}
    assert len(files) == len(set(files)) == 8
    for found in files:
        root = ElementTree.parse(found).getroot()
        assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    summary = write_summary(tmp_path, summary_of(seeds=(0,)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: cannot be written to \(File exists\)"):
        write_figures(summary, tmp_path / "file")
    summary.write_text("{}")
    with pytest.raises(RunError, match="version: is damaged"):
        write_figures(summary, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
