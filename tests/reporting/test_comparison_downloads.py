"""CSV files of comparisons: the numbers survive, and the budget is kept."""

from pathlib import Path

from doge_ds.reporting.comparison_downloads import comparison_downloads
from doge_ds.reporting.summaries import read_summaries
from tests.reporting.comparisons import DOMAINS, summary_of, write_summary
from tests.reporting.run_directories import names
from tests.reporting.test_downloads import rows


def test_every_number_is_there(tmp_path: Path) -> None:
    written = summary_of("x y/z", tasks=["sciq"])
    file = tmp_path / "summary.json"
    write_summary(tmp_path, {**written, "name": "a"}).replace(file)
    file.write_text(file.read_text().replace('"name": "a"', '"name": "x y/z"'))
    found = {download.file_name: rows(download) for download in comparison_downloads(read_summaries([file]))}
    assert list(found) == [f"x_y_z_{kind}.csv" for kind in ("means", "seeds", "trajectories", "cosines")]
    doge = written["mixtures"]["doge"]
    mean = doge["differences"]["groups"]["all"]
    expected = ["doge", "difference_of_average", "all", repr(mean["mean"]), repr(mean["low"]), repr(mean["high"]), "3"]
    assert expected in found["x_y_z_means.csv"]
    for measure, of in (("log_perplexity", DOMAINS[0]), ("weight", DOMAINS[1]), ("accuracy", "sciq")):
        key = "weights" if measure == "weight" else measure
        for seed, value in doge[key][of]["by_seed"].items():
            assert ["doge", measure, of, seed, repr(value)] in found["x_y_z_seeds.csv"]
    trajectory = doge["trajectory"]
    expected = ["doge", "600", "news", *(f"{trajectory[key]['news'][-1]:.6g}" for key in ("weight", "mean_weight"))]
    assert expected in found["x_y_z_trajectories.csv"]
    assert ["doge", "news", "yaml", f"{doge['gram_cosines']['values'][4][2]:.3f}"] in found["x_y_z_cosines.csv"]


def test_what_is_no_number_is_an_empty_field(tmp_path: Path) -> None:
    written = summary_of(seeds=(0,))
    written["mixtures"]["doge"]["trajectory"]["weight"]["news"][0] = None
    written["mixtures"]["doge"]["gram_cosines"]["values"][0][1] = None
    found = [rows(download) for download in comparison_downloads(read_summaries([write_summary(tmp_path, written)]))]
    means, _, trajectories, cosines = found
    assert all(row[4:6] == ["", ""] for row in means[1:])
    assert next(row for row in trajectories if row[:3] == ["doge", "10", "news"])[3] == ""
    assert ["doge", "python", "prose", ""] in cosines


def test_a_budget_that_is_too_small_thins_or_leaves_out(tmp_path: Path) -> None:
    file = write_summary(tmp_path, summary_of(domains=names(60)))
    files = read_summaries([file])
    whole, thinned = comparison_downloads(files, 4_000_000), comparison_downloads(files, 400_000)
    assert len(whole) == 4
    steps = [{row[1] for row in rows(download)[1:]} for download in (whole[2], thinned[-1])]
    assert len(steps[0]) == 60
    assert {"10", "600"} <= steps[1] < steps[0]
    assert sum(len(download.uri) for download in thinned) <= 400_000
    assert comparison_downloads(files, 100) == []


def test_files_of_several_comparisons_do_not_share_a_name(tmp_path: Path) -> None:
    files = [write_summary(tmp_path / folder, summary_of("same", seeds=(0,))) for folder in "ab"]
    found = [download.file_name for download in comparison_downloads(read_summaries(files))]
    assert len(found) == len(set(found)) == 8
