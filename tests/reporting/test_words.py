"""Sentences: they say what is so, and no more."""

import json
from pathlib import Path

import pytest

from doge_ds.reporting import words
from doge_ds.reporting.run_files import RunRecord, read_runs
from tests.reporting.run_directories import diverged, edit_metrics, make_base, make_proxy, names, results_of, write

MIXTURE = {"a": 0.25, "b": 0.75}


def proxy(path: Path, **options: object) -> RunRecord:
    return read_runs([make_proxy(path, **options)])[0]  # type: ignore[arg-type]


def test_the_answer_of_a_finished_and_of_an_unfinished_proxy(tmp_path: Path) -> None:
    done = words.proxy_sentence(proxy(tmp_path / "done", domains=["a", "b"], target=["b", "c"]))
    assert done.startswith("done learned b 0.9")
    assert done.endswith("Its weights are aimed at b, c; never trained on: c.")
    going = words.proxy_sentence(proxy(tmp_path / "going", domains=["a", "b"], target="all", steps=100, logged=(50,)))
    assert "going is not finished: after 50 of 100 steps its running mean is b 0.981, a 0.019" in going
    assert "will still change" in going
    nothing = words.proxy_sentence(proxy(tmp_path / "nothing", logged=()))
    assert nothing == "nothing has not logged any weights yet."


@pytest.mark.parametrize(
    ("target", "ending"),
    [
        ("mix", "at an even mix of the train domains."),
        ("all", "at all train domains."),
        ("others", "at all the other train domains."),
        (["a"], "aimed at a."),
        (["c"], "aimed at c, never trained on."),
    ],
)
def test_what_the_weights_are_aimed_at(tmp_path: Path, target: str | list[str], ending: str) -> None:
    assert words.proxy_sentence(proxy(tmp_path / "p", domains=["a", "b"], target=target)).endswith(ending)


def test_many_domains_are_counted_not_listed(tmp_path: Path) -> None:
    assert ", and 195 more. " in words.proxy_sentence(proxy(tmp_path / "p", domains=names(200)))


def test_what_a_base_reached(tmp_path: Path) -> None:
    runs = read_runs(
        [
            make_proxy(tmp_path / "proxy", ["a", "b"], target=["c"]),
            make_base(tmp_path / "one", {"a": 0.5, "b": 0.5}, {"a": 4.0, "c": 9.0}),
            make_base(tmp_path / "two", MIXTURE, {"a": None}),
            make_base(tmp_path / "three", MIXTURE, logged=(20,)),
        ]
    )
    one, two, three = (words.base_sentence(run, runs) for run in runs[1:])
    assert one == (
        "one, trained on the uniform mixture, has a geometric mean perplexity of 6.00; on the target: c 9.00."
    )
    assert "two was trained on the mixture of no proxy in this report; its perplexity has not been measured, or" in two
    assert three.endswith("is not finished: 20 of 40 steps are logged.")


def test_notes_on_thin_lines_nulls_and_a_cut_line(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "p", names(30), steps=100, logged=range(1, 91))
    edit_metrics(path, 3, **{"loss/domain_001": None})
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write("{")
    note = words.progress_note(read_runs([path])[0], points=40)
    assert note.startswith("Not finished: 90 of 100 steps are logged; the last line was written 20")
    assert "through 40 of 90 logged steps (20 on narrow screens)" in note
    assert "The last line of metrics.jsonl is cut off" in note
    assert "1 of 90 logged steps have a number that is not finite" in note
    assert "The charts show 10 of 31 domains" in note
    assert words.progress_note(proxy(tmp_path / "q"), points=40) == ""


def test_a_domain_that_a_base_did_not_draw_is_no_trouble_but_a_lost_loss_is(tmp_path: Path) -> None:
    path = make_base(tmp_path / "b", MIXTURE)
    edit_metrics(path, 0, **{"loss/a": None})
    assert words.progress_note(read_runs([path])[0], points=40) == ""
    edit_metrics(path, 0, loss=None)
    assert "1 of 2 logged steps" in words.progress_note(read_runs([path])[0], points=40)


def test_a_key_that_a_proxys_line_lacks_is_no_trouble_but_a_null_is(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "p", ["a", "b"], target="all")
    lines = [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]
    for key in ("loss/a", "score/a", "score/b", "gradient_norm/a", "gram"):
        del lines[1][key]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert words.progress_note(read_runs([path])[0], points=40) == ""
    edit_metrics(path, 1, gram=None)
    assert words.progress_note(read_runs([path])[0], points=40) == ""
    edit_metrics(path, 1, **{"score/a": None, "loss/b": None})
    edit_metrics(path, 2, **{"loss/a": None})
    assert "2 of 4 logged steps have a number" in words.progress_note(read_runs([path])[0], points=40)


def test_charts_are_described_with_their_numbers(tmp_path: Path) -> None:
    run = proxy(tmp_path / "p", domains=["a", "b"], target="all", logged=(10, 40))
    assert "step 10 to 40: b from 0.917 to 0.976, a from 0.083 to 0.024." in words.weights_description(run)
    losses = words.losses_description(run)
    assert "a from " in losses
    assert losses.endswith("; the learning rate ends at 0.005.")
    edit_metrics(tmp_path / "p", 1, **{"held_out_log_perplexity/a": 3.5})
    held_out = words.held_out_description(read_runs([tmp_path / "p"])[0])
    assert held_out == "Line chart of held-out log-perplexities, step 10 to 40: a from 3.50 to 3.50."


def test_cosines_note_names_the_extremes_and_what_is_left_out(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "p", ["a", "b", "c"], target="all", logged=(40,))
    edit_metrics(path, 0, gram=[[1, 0.5, -0.25], [0.5, 1, 0], [-0.25, 0, 1]])
    note = words.cosines_note(read_runs([path])[0])
    assert note.endswith("Most alike: a and b (+0.50); least: a and c (\N{MINUS SIGN}0.25).")
    assert "Mean over 1 logged step of" in note
    many = words.cosines_note(proxy(tmp_path / "q", domains=names(60)))
    assert "Shown are 40 of 61 rows" in many
    edit_metrics(path, 0, gram=[[None] * 3] * 3)
    assert words.cosines_note(read_runs([path])[0]) == "No step with a finite Gram matrix has been logged."


def test_cosines_note_says_that_not_every_step_has_every_pair(tmp_path: Path) -> None:
    path = make_proxy(tmp_path / "p", ["a", "b", "c"], target="all", logged=(10, 20, 30))
    assert "Each pair" not in words.cosines_note(read_runs([path])[0])
    edit_metrics(path, 1, gram_rows=["c", "a"], gram=[[1, 0.5], [0.5, 1]])
    note = words.cosines_note(read_runs([path])[0])
    assert "Mean over 3 logged steps of" in note
    assert "Each pair's is over the steps that have both: 2 to 3 of them." in note


def test_what_limits_a_comparison_is_said(tmp_path: Path) -> None:
    one = make_base(tmp_path / "one", MIXTURE, {"a": 4.0, "b": None}, measured_on="9" * 16)
    two = make_base(tmp_path / "two", MIXTURE, {"a": 4.0}, measured_on="9" * 16)
    write(two / "results.json", results_of({"a": 4.0}, "9" * 16) | {"sequence_length": 32})
    three = make_base(tmp_path / "three", MIXTURE)
    notes = " ".join(words.perplexity_notes(read_runs([one, two, three])))
    assert "Not measured: three." in notes
    assert "windows of different lengths (16, 32 tokens)" in notes
    assert "Measured on different domains" in notes
    assert "A dash is a perplexity above" in notes
    assert "Measured on another store than" in notes
    (tmp_path / "four").mkdir()
    fine = make_base(tmp_path / "four/base", MIXTURE, {"a": 4.0})
    assert words.perplexity_notes(read_runs([fine])) == []


def test_a_base_that_diverged_says_so(tmp_path: Path) -> None:
    path = make_base(tmp_path / "base", MIXTURE, {"a": 4.0})
    write(path / "results.json", diverged(["a", "b"]))
    runs = read_runs([path])
    assert words.perplexity_notes(runs) == ["base gives no finite likelihood for a, b: dashes stand there."]
    sentence = words.base_sentence(runs[0], runs)
    assert sentence.endswith("has no finite perplexity: it diverged, or its weights are damaged.")
