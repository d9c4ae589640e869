"""DoReMi as a user runs it: a reference by train_base.py, the proxy against it, killed and continued; bad input."""

import json
import shutil
from pathlib import Path

import pytest

from tests.distributed.comparing import metrics_of
from tests.distributed.ranks import Ranks
from tests.distributed.small_runs import MODEL, small_store, write_config

BASE, PROXY = "doge_ds/train_base.py", "doge_ds/train_proxy.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """reference/, a run; undisturbed/ and killed/, proxies on 2 ranks against it."""
    folder = tmp_path_factory.mktemp("doremi")
    store = small_store(folder / "store")
    base = write_config(folder / "base.json", store, "base", training={"seed": 11})
    trained = Ranks(2, BASE, "--config", str(base), "--mixture", "uniform", "--output", str(folder / "reference"))
    assert trained.finish()[0] == [0, 0]
    write_config(
        folder / "proxy.json",
        store,
        "proxy",
        data={"train_domains": ["a", "b", "c"]},
        method="doremi",
        doge={"preset": "official"},
        doremi={"step_size": 0.5},
    )
    config = json.loads((folder / "proxy.json").read_text())
    del config["doge"]
    (folder / "proxy.json").write_text(json.dumps(config))
    assert start(folder, "undisturbed").finish()[0] == [0, 0]
    disturbed = start(folder, "killed")
    disturbed.wait_for_lines(folder / "killed/metrics.jsonl", 15)
    disturbed.kill()
    assert len(metrics_of(folder / "killed")) < 40
    assert start(folder, "killed").finish()[0] == [0, 0]
    return folder


def start(folder: Path, run: str, reference: str = "reference", *more: str, ranks: int = 2) -> Ranks:
    arguments = ["--config", str(folder / "proxy.json"), "--output", str(folder / run)]
    return Ranks(ranks, PROXY, *arguments, "--reference", str(folder / reference), *more)


def error(ranks: Ranks) -> str:
    (status,), printed = ranks.finish()
    assert status == 2, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    return line


def test_a_killed_run_equals_an_undisturbed_one_and_its_weights_follow_the_excess(folder: Path) -> None:
    lines = metrics_of(folder / "undisturbed")
    assert metrics_of(folder / "killed") == lines
    assert [line["step"] for line in lines] == list(range(1, 41))
    uniform, step_size, smoothing = 1 / 3, 0.5, 1e-3
    grown = {name: uniform * 2.718281828459045 ** (step_size * lines[0][f"score/{name}"]) for name in "abc"}
    for name, weight in grown.items():
        expected = (1 - smoothing) * weight / sum(grown.values()) + smoothing / 3
        assert lines[0][f"weight/{name}"] == pytest.approx(expected, rel=1e-9)
    assert all(line[f"score/{name}"] >= 0 for line in lines for name in "abc")
    mixture = json.loads((folder / "undisturbed/mixture.json").read_text())
    mean = {name: sum(line[f"weight/{name}"] for line in lines) / 40 for name in "abc"}
    assert mixture["domains"] == pytest.approx(mean, rel=1e-9)
    assert mixture["source"]["method"] == "doremi"
    assert max(mean.values()) - min(mean.values()) > 0.01


def test_the_run_knows_its_reference_by_content_not_by_place(folder: Path) -> None:
    shutil.copytree(folder / "reference/hf", folder / "moved")
    (status,), printed = start(folder, "undisturbed", "moved", ranks=1).finish()
    assert status == 0
    assert "finished: " in printed
    other = shutil.copytree(folder / "moved", folder / "other")
    model = bytearray((other / "model.safetensors").read_bytes())
    model[-1] ^= 1
    (other / "model.safetensors").write_bytes(model)
    assert "holds another run: reference is " in error(start(folder, "undisturbed", "other", ranks=1))


def test_what_cannot_be_a_reference_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    missing = error(Ranks(1, PROXY, "--config", str(folder / "proxy.json"), "--output", str(tmp_path / "run")))
    assert "method doremi: needs a reference model; train one with train_base.py, and name it in doremi" in missing
    assert "is no folder; give a Hugging Face folder" in error(start(folder, "new", "nowhere", ranks=1))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text("{}")
    assert "is a run that has exported no model; name a run of train_base.py" in error(
        start(folder, "new", str(unfinished), ranks=1)
    )
    altered = shutil.copytree(folder / "reference/hf", tmp_path / "altered")
    config = json.loads((altered / "config.json").read_text())
    (altered / "config.json").write_text(json.dumps({**config, "doge_ds_tokenizer_sha256": "0" * 64}))
    assert "was trained with another tokenizer than the store's" in error(start(folder, "new", str(altered), ranks=1))
    doge = write_config(tmp_path / "doge.json", folder / "store", "proxy", model=MODEL)
    ranks = Ranks(1, PROXY, "--config", str(doge), "--output", str(tmp_path / "run"), "--reference", "x")
    assert 'belongs to method doremi, and this is doge; leave it out, or set "method": "doremi"' in error(ranks)
    setting = start(folder, "new", "reference", "--set", "doge.mu=0.5", ranks=1)
    assert "method is 'doremi', which does not read the section 'doge'" in error(setting)
    assert not (folder / "new").exists()
