"""Run directories: what is read, and what does not belong together."""

import json
from pathlib import Path

import pytest

from doge_ds.errors import DogeError, MixtureError, RunError
from doge_ds.reporting.run_files import is_uniform, proxy_with_mixture, read_runs
from tests.reporting.run_directories import edit_metrics, make_base, make_proxy, results_of, write

MIXTURE = {"python": 0.25, "prose": 0.75}
FACTS = '{"program": "train_base", "ranks": 1, "store": "0", "tokenizer_sha256": "0"'


def test_a_finished_proxy_has_its_mixture_and_an_unfinished_one_its_running_mean(tmp_path: Path) -> None:
    make_proxy(tmp_path / "a", steps=20, logged=(10, 20))
    make_proxy(tmp_path / "b", steps=90, logged=(10, 20))
    edit_metrics(tmp_path / "b", 1, **{"mean_weight/python": 0.5, "mean_weight/prose": 0.3, "mean_weight/yaml": 0.2})
    edit_metrics(tmp_path / "a", 1, **{"mean_weight/python": 0.9})
    finished, unfinished = read_runs([tmp_path / "a", tmp_path / "b"])
    assert finished.is_finished
    assert finished.mixture is not None
    assert finished.mixture.domains == json.loads((tmp_path / "a/mixture.json").read_text())["domains"]
    assert not unfinished.is_finished
    assert unfinished.mixture is not None
    assert unfinished.mixture.domains == {"python": 0.5, "prose": 0.3, "yaml": 0.2}


def test_a_run_without_a_logged_step_has_no_mixture_yet(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "a", logged=())
    assert read_runs([path])[0].mixture is None
    (path / "metrics.jsonl").unlink()
    assert len(read_runs([path])[0].metrics.steps) == 0


def test_results_lie_in_the_run_or_else_in_its_model(tmp_path: Path) -> None:
    path = make_base(tmp_path / "a", MIXTURE, {"python": 3.0}, results="hf/results.json")
    assert read_runs([path])[0].results_path == path / "hf/results.json"
    write(path / "results.json", results_of({"python": None}))
    (run,) = read_runs([path])
    assert run.results_path == path / "results.json"
    assert run.results is not None
    assert run.results.perplexity is not None
    assert run.results.perplexity.domains["python"].perplexity is None


def test_what_is_no_finite_number_in_results_is_none(tmp_path: Path) -> None:
    path = make_base(tmp_path / "a", MIXTURE, {"python": 3.0})
    text = json.dumps(results_of({"python": 3.0})["perplexity"]["domains"]["python"]["log_perplexity"])
    for literal in ("null", "NaN", "-Infinity", "1e999", "9" * 400):
        (path / "results.json").write_text(json.dumps(results_of({"python": 3.0})).replace(text, literal))
        (run,) = read_runs([path])
        assert run.results is not None
        assert run.results.perplexity is not None
        assert run.results.perplexity.average_log_perplexity is None
        assert run.results.perplexity.domains["python"].log_perplexity is None


def test_names_are_as_long_as_they_need_to_be(tmp_path: Path) -> None:
    paths = [make_base(tmp_path / name, MIXTURE) for name in ("x/base", "y/base")]
    assert [run.name for run in read_runs(paths)] == ["x/base", "y/base"]
    assert [run.name for run in read_runs(paths[:1])] == ["base"]


def test_a_bases_mixture_is_recognised(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path / "proxy")
    learned = json.loads((proxy / "mixture.json").read_text())["domains"]
    uniform = dict.fromkeys(learned, 1 / 3)
    runs = read_runs([proxy, make_base(tmp_path / "a", learned), make_base(tmp_path / "b", uniform)])
    assert [proxy_with_mixture(run.mixture, runs) for run in runs[1:] if run.mixture] == [runs[0], None]
    assert [is_uniform(run.mixture) for run in runs[1:] if run.mixture] == [False, True]


def test_a_store_moved_is_the_same_store(tmp_path: Path) -> None:
    one, two = make_base(tmp_path / "a", MIXTURE, {"python": 3.0}), make_base(tmp_path / "b", MIXTURE, {"python": 4.0})
    results = results_of({"python": 4.0})
    write(two / "results.json", {**results, "data": {**results["data"], "path": "elsewhere"}})
    assert len(read_runs([one, two])) == 2


def spoil(path: Path, what: str) -> None:
    """Damage one file of a run in one way."""
    file, _, text = what.partition("=")
    if text:
        (path / file).write_text(text)
    else:
        (path / file).unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("run.json", "is no run directory: it has no run.json; name the --output of train_proxy.py"),
        ("config.json", "is no run directory: it has no config.json"),
        ('run.json={"program": ', "run.json, line 1, column 13: is no JSON"),
        ('run.json={"program": "x"}', "run.json: program: is damaged"),
        (f'run.json={FACTS}, "mixture": {{"a": NaN}}}}', "run.json: mixture.a: is damaged"),
        ("config.json={}", "config.json: model: is missing"),
        ("config.json=[]", "config.json: holds no JSON object"),
        ("metrics.jsonl=x\ny\n", "metrics.jsonl, line 1: is no JSON"),
        ('results.json={"version": 1}', "results.json: is damaged (Value error, neither perplexity nor tasks)"),
        ('results.json={"version": 7}', "results.json: version: is damaged"),
        ("results.json={", "results.json, line 1, column 2: is no JSON"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path: Path, what: str, message: str) -> None:
    path = make_base(tmp_path / "run", MIXTURE, {"python": 3.0})
    spoil(path, what)
    with pytest.raises(DogeError) as caught:
        read_runs([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file: is a file, not a run directory"):
        read_runs([tmp_path / "file"])
    with pytest.raises(RunError, match="nowhere: is not there"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"has no run\.json and no config\.json"):
        read_runs([tmp_path / "empty"])


def test_a_damaged_mixture_is_refused(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "a")
    (path / "mixture.json").write_text('{"version": 1, "domains": {"python": 0.4}}')
    with pytest.raises(MixtureError, match=r"the weights sum to 0\.4"):
        read_runs([path])


def test_the_same_run_twice_is_refused_however_it_is_written(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "a")
    (tmp_path / "link").symlink_to(path)
    for other in (path, tmp_path / "a/../a", tmp_path / "link"):
        with pytest.raises(RunError, match="is named twice"):
            read_runs([path, other])


def test_runs_on_other_stores_or_tokenizers_are_refused_with_both_and_the_difference(tmp_path: Path) -> None:
    first = make_proxy(tmp_path / "a")
    store = make_proxy(tmp_path / "b", store="f" * 16)
    tokenizer = make_proxy(tmp_path / "c", store="e" * 16, tokenizer="d" * 64)
    with pytest.raises(RunError) as caught:
        read_runs([first, store])
    expected = f"{store}: its token store fingerprint is {'f' * 16}, that of {first} is 0123456789abcdef; "
    assert str(caught.value).startswith(expected)
    with pytest.raises(RunError, match=f"its tokenizer fingerprint is {'d' * 16}, that of .*/a is fedcba98fedcba98"):
        read_runs([first, tokenizer])


def test_perplexities_measured_on_other_stores_are_refused(tmp_path: Path) -> None:
    one = make_base(tmp_path / "a", MIXTURE, {"python": 3.0})
    two = make_base(tmp_path / "b", MIXTURE, {"python": 3.0}, measured_on="9" * 16)
    assert len(read_runs([two])) == 1  # one alone may be measured on any store
    with pytest.raises(
        RunError, match=r"b/results\.json: its fingerprint of the store measured on is 9999999999999999"
    ):
        read_runs([one, two])
