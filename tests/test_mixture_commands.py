"""`doge-ds mixture`: what it prints and writes, and the one line that each mistake gets."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from doge_ds.cli import main
from doge_ds.data.order import PERIOD, apportion
from doge_ds.mixture import read_mixture
from doge_ds.mixture_tables import kl_divergence, total_variation
from tests.reporting.run_directories import edit_metrics, make_base, make_proxy
from tests.stores import make_store

A, B = {"wiki": 0.5, "books": 0.25, "code": 0.25}, {"wiki": 0.25, "books": 0.5, "code": 0.25}


def write(path: Path, values: Any) -> str:
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    source = {"tokenizer_sha256": "1" * 64}
    one, other = ({"version": 1, "domains": weights, "source": source} for weights in (A, B))
    return write(tmp_path / "a.json", one), write(tmp_path / "b.json", other)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = main(["mixture", *arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["mixture", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_show(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = call(capsys, "show", files[0], "--plot", str(tmp_path / "p.svg")).splitlines()
    assert lines[1].split() == ["wiki", "0.5000", "x1.50", "#" * 30]
    assert lines[2].split() == ["books", "0.2500", "x0.75", "#" * 15]
    assert lines[-1] == f"effective number of domains: {2 * math.sqrt(2):.2f} of 3"
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    found = json.loads(call(capsys, "show", "natural_slimpajama", "--json"))
    assert found["kind"] == "natural"
    assert found["domains"]["commoncrawl"] == pytest.approx(0.522)


def test_compare(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(call(capsys, "compare", *files, "--json"))
    assert found["kl_from_first"] == {files[0]: 0, files[1]: pytest.approx(0.25 * math.log(2))}
    assert found["total_variation"][files[1]] == 0.25
    printed = call(capsys, "compare", *files, "--plot", str(tmp_path / "p.png"))
    assert [line.split() for line in printed.splitlines() if line.startswith("total")] == [
        ["total", "variation", "0.0000", "0.2500"]
    ]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert kl_divergence({"a": 1.0}, {"b": 1.0}) == math.inf
    assert total_variation({"a": 1.0}, {"b": 1.0}) == 1
    other = write(tmp_path / "c.json", {"wiki": 1.0})
    assert json.loads(call(capsys, "compare", files[0], other, "--json"))["kl_from_first"][other] is None


def test_words_need_a_store_and_another_tokenizer_is_told(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "uniform: is a mixture over the domains of a store; name the store with --data" in refusal(
        capsys, "show", "uniform"
    )
    ids = np.arange(100) % 60
    store = make_store(tmp_path / "store", {"wiki": ids, "books": ids[:60], "code": ids[:40]})
    assert main(["mixture", "compare", "natural", files[0], "--data", str(store.path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mixtures"]["natural"] == {"wiki": 0.5, "books": 0.3, "code": 0.2}
    assert "a.json: the weights were learned with another tokenizer (1111" in printed.err
    assert printed.err.count("\n") == 1


def test_average(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mean.json"
    call(capsys, "average", *files, "--weights", "1", "3", "-o", str(output))
    mean = read_mixture(output)
    assert mean.domains == pytest.approx({"wiki": 0.3125, "books": 0.4375, "code": 0.25})
    assert mean.kind == "mean"
    assert mean.source == {
        "method": "average",
        "of": list(files),
        "weights": [0.25, 0.75],
        "tokenizer_sha256": "1" * 64,
    }
    assert "mean.json: exists, and is not touched" in refusal(capsys, "average", *files, "-o", str(output))
    assert "are 1 where there are 2 mixtures" in refusal(capsys, "average", *files, "--weights", "1")
    assert "cannot stand" in refusal(capsys, "average", *files, "--weights", "0", "0")
    assert "has a weight for 'arxiv'" in refusal(capsys, "average", files[0], "doge_slimpajama")
    assert "is named twice" in refusal(capsys, "average", files[0], files[0])


def test_set(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(call(capsys, "set", files[0], "books=0.4", "--json"))["domains"]
    assert found == pytest.approx({"wiki": 0.4, "books": 0.4, "code": 0.2})
    assert json.loads(call(capsys, "set", files[0], "books=1", "--json"))["domains"] == {
        "wiki": 0,
        "books": 1,
        "code": 0,
    }
    assert "has no domain 'boks'; did you mean 'books'?" in refusal(capsys, "set", files[0], "boks=0.4")
    assert "is no weight" in refusal(capsys, "set", files[0], "books=1.4")
    assert "is no weight" in refusal(capsys, "set", files[0], "books=nan")
    assert "would sum to 1.2" in refusal(capsys, "set", files[0], "books=0.6", "code=0.6")
    assert "would sum to 0.6" in refusal(capsys, "set", files[0], "books=0.2", "code=0.2", "wiki=0.2")
    assert "sets no weight; write it like" in refusal(capsys, "set", files[0], "books")


def test_export_and_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doremi = {"train_domain_weights": {"Pile-CC": 1.5, "Enron Emails": 0.5, "x": 0}, "eval_domain_weights": {}}
    path = write(tmp_path / "pile.json", doremi)
    assert "the weights sum to 2; give --normalize" in refusal(capsys, "export", path)
    expected = {"Pile-CC": 0.75, "Enron Emails": 0.25, "x": 0}
    assert json.loads(call(capsys, "export", path, "--normalize")) == expected
    assert yaml.safe_load(call(capsys, "export", path, "--normalize", "--format", "yaml")) == expected
    command = ["export", path, "--normalize", "--format", "megatron", "--prefix", "bin"]
    assert call(capsys, *command) == "0.75 bin/Pile-CC 0.25 'bin/Enron Emails'\n"
    call(capsys, *command[:3], "--format", "yaml", "-o", str(tmp_path / "pile.yaml"))
    call(capsys, "show", str(tmp_path / "pile.yaml"), "-o", str(tmp_path / "mixture.json"))
    assert read_mixture(tmp_path / "mixture.json").domains == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.5], "holds no weights by name"),
        ({}, "holds no weights by name"),
        ({"a": True}, "a: true is no weight"),
        ({"a": "1"}, 'a: "1" is no weight'),
        ({"a": -1, "b": 2}, "a: -1.0 is no weight"),
        ({"train_domain_weights": 7}, "train_domain_weights: holds no weights by name"),
        ({"version": 1, "schedule": []}, "holds a schedule of several mixtures"),
        ({"a": 0, "b": 0}, "every weight is 0"),
        ({"version": 1, "domains": {"a": "x"}}, "domains.a: Input should be a valid number"),
    ],
)
def test_files_that_hold_no_mixture(
    tmp_path: Path, values: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "show", write(tmp_path / "x.json", values), "--normalize")


def test_other_mistakes(tmp_path: Path, files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("a: [1")
    assert "is no JSON or YAML" in refusal(capsys, "show", str(tmp_path / "x.yaml"))
    assert "has no mixture.json; name a finished run" in refusal(capsys, "show", str(tmp_path))
    assert "did you mean 'doge_slimpajama'?" in refusal(capsys, "show", "doge_slimpajam")
    assert "is no picture's name; let it end with .png" in refusal(capsys, "show", files[0], "--plot", "x.gif")
    assert "No such file" in refusal(capsys, "show", str(tmp_path / "nowhere.json"))
    assert "cannot be written (No such file" in refusal(capsys, "show", files[0], "-o", str(tmp_path / "no/m.json"))
    assert "invalid choice: 'shw'" in refusal(capsys, "shw")
    assert "arguments are required: COMMAND" in refusal(capsys)


def trajectory(path: Path, steps: int = 40, every: int = 4) -> np.ndarray:
    """A proxy's run whose weights, [steps, 3], are drawn; metrics.jsonl has their running mean."""
    weights = np.random.default_rng(3).dirichlet([1, 2, 3], steps)
    logged = list(range(every, steps + 1, every))
    make_proxy(path, steps=steps, logged=logged)
    means = np.cumsum(weights, axis=0) / np.arange(1, steps + 1)[:, None]
    for line, step in enumerate(logged):
        edit_metrics(
            path,
            line,
            **{
                f"mean_weight/{name}": mean
                for name, mean in zip(("python", "prose", "yaml"), means[step - 1], strict=True)
            },
        )
    mixture = json.loads((path / "mixture.json").read_text())
    mixture["source"]["accepted_steps"] = steps
    (path / "mixture.json").write_text(json.dumps(mixture))
    return weights


def test_stages_are_the_means_of_the_weights_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = trajectory(tmp_path / "proxy")
    output = tmp_path / "stages.json"
    printed = call(
        capsys, "schedule", str(tmp_path / "proxy"), "--stages", "3", "--steps", "1000", "-o", str(output), "--json"
    )
    found = json.loads(output.read_text())
    assert json.loads(printed) == found
    # Thirds of 40 steps end at 13.3 and 26.7; the nearest logged steps are 12 and 28.
    assert [stage["from_step"] for stage in found["schedule"]] == [0, 300, 700]
    for stage, (start, end) in zip(found["schedule"], ((0, 12), (12, 28), (28, 40)), strict=True):
        expected = dict(zip(("python", "prose", "yaml"), weights[start:end].mean(axis=0).tolist(), strict=True))
        assert stage["mixture"] == pytest.approx(expected, abs=1e-12)
    assert found["source"]["proxy_steps"] == [0, 12, 28, 40]
    assert found["source"]["method"] == "doge"
    (whole,) = json.loads(call(capsys, "schedule", str(tmp_path / "proxy"), "--stages", "1", "--json"))["schedule"]
    assert list(whole["mixture"].values()) == pytest.approx(weights.mean(axis=0).tolist(), abs=1e-12)


def test_a_job_that_is_started_again_finds_its_file_and_replaces_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trajectory(tmp_path / "proxy")
    output, link = tmp_path / "stages.json", tmp_path / "link"
    words = ["schedule", str(tmp_path / "proxy"), "--stages", "3", "-o"]
    printed = call(capsys, *words, str(output))
    before = (output.read_bytes(), output.stat().st_mtime_ns)
    assert main(["mixture", *words, str(output)]) == 0
    assert capsys.readouterr() == (printed, f"written before: {output}\n")
    words[3] = "2"
    assert f"-o {output}: exists, and is not touched" in refusal(capsys, *words, str(output))
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    link.symlink_to("nowhere")
    for place in (link, tmp_path / "proxy"):
        assert f"-o {place}: exists, and is not touched" in refusal(capsys, *words, str(place))
    assert not (tmp_path / "nowhere").exists()


def test_a_domain_that_has_collapsed_is_0_in_later_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectory(tmp_path / "proxy")
    updates = np.exp([[0.0, 0.0, -0.9 * step] for step in range(40)])
    means = np.cumsum(updates / updates.sum(axis=1, keepdims=True), axis=0) / np.arange(1, 41)[:, None]
    for line, step in enumerate(range(4, 41, 4)):
        names = zip(("python", "prose", "yaml"), means[step - 1].tolist(), strict=True)
        edit_metrics(tmp_path / "proxy", line, **{f"mean_weight/{name}": mean for name, mean in names})
    stages = json.loads(call(capsys, "schedule", str(tmp_path / "proxy"), "--stages", "4", "--json"))["schedule"]
    assert stages[0]["mixture"]["yaml"] > 0.01
    assert [stage["mixture"]["yaml"] for stage in stages[2:]] == [0, 0]
    for stage in stages:  # bases would refuse a trace
        assert sum(apportion(stage["mixture"]).values()) == PERIOD


def test_stages_that_cannot_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectory(tmp_path / "proxy", every=20)
    proxy = str(tmp_path / "proxy")
    assert "has 2 logged steps, too few for 3 stages" in refusal(capsys, "schedule", proxy, "--stages", "3")
    assert "is no number of stages" in refusal(capsys, "schedule", proxy, "--stages", "0")
    assert "has too few for 2 stages" in refusal(capsys, "schedule", proxy, "--stages", "2", "--steps", "1")
    make_base(tmp_path / "base", {"python": 1.0})
    assert "learns no weights" in refusal(capsys, "schedule", str(tmp_path / "base"), "--stages", "2")
    make_proxy(tmp_path / "young", logged=())
    assert "has logged no mean weights yet" in refusal(capsys, "schedule", str(tmp_path / "young"), "--stages", "2")


def test_a_picture_has_names_with_dollars_and_a_first_underscore(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in ("$x_{$.json", "_y.json")]
    for name in names:
        write(Path(name), {"$\\frac{$": 0.5, "_b": 0.5})
    call(capsys, "compare", *names, "--plot", str(tmp_path / "p.svg"))
    drawn = (tmp_path / "p.svg").read_text()
    for text in ("$\\frac{$", "_b", *names):
        assert f"<!-- {text} -->" in drawn
