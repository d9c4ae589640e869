"""The chain before anything is submitted: what it consists of, and what is refused. tests/slurm/ submits it."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from doge_ds import pipeline
from tests.distributed.small_runs import small_store, write_config

SUITE = str(Path(__file__).parent / "fixtures/tasks_measuring_nothing")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    small_store(folder / "store")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configurations of a proxy for `x` and of a base on the other domains, and a recipe; no sbatch is to be found."""
    write_config(tmp_path / "proxy.json", made / "store", "proxy")
    write_config(tmp_path / "base.json", made / "store", "base")
    (tmp_path / "recipe.json").write_text(
        json.dumps({"sources": [{"files": ["a.txt"], "domain": "a"}], "tokenizer": "gpt2"})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> list[list[str]]:
    """The words of each line that --dry_run prints."""
    assert pipeline.main(["proxy.json", "base.json", "--dry_run", "--output", "chain", *options]) == 0
    return [shlex.split(line, comments=False) for line in capsys.readouterr().out.splitlines()]


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert pipeline.main(["proxy.json", "base.json", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def of_stage(commands: Sequence[Sequence[str]], name: str) -> list[str]:
    (found,) = [command for command in commands if f"--job-name=doge-{name}" in command]
    return list(found)


@pytest.mark.usefixtures("folder")
def test_two_bases_train_side_by_side_and_each_stage_waits_for_what_it_reads(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = shown(capsys)
    waits = {}
    for command in commands:
        assert command[:2] == ["sbatch", "--parsable"]
        name = command[2].removeprefix("--job-name=doge-")
        waits[name] = [word.partition("afterok:")[2] for word in command if word.startswith("--dependency=")]
        assert ("--kill-on-invalid-dep=yes" in command) == bool(waits[name])
    assert waits == {
        "proxy": [],
        "base-uniform": ["PROXY"],
        "base-doge": ["PROXY"],
        "eval-uniform": ["BASE-UNIFORM"],
        "eval-doge": ["BASE-DOGE"],
        "report": ["BASE-UNIFORM:BASE-DOGE:EVAL-UNIFORM:EVAL-DOGE"],
    }
    first = {name: f"slurm/{name.split('-')[0]}.sh" for name in waits} | {"report": "slurm/verb.sh"}
    scripts = {name: command[command.index(first[name]) :] for name, command in zip(waits, commands, strict=True)}
    assert scripts["proxy"] == ["slurm/proxy.sh", "proxy.json", "--output", "chain/proxy"]
    for name, mixture in (("uniform", "uniform"), ("doge", "chain/proxy/mixture.json")):
        train = ["slurm/base.sh", "base.json", "--mixture", mixture, "--output", f"chain/base_{name}"]
        assert scripts[f"base-{name}"] == train
        measure = ["slurm/eval.sh", "--model", f"chain/base_{name}", "--data", str(made / "store")]
        assert scripts[f"eval-{name}"] == measure
    runs = [f"chain/{name}" for name in ("proxy", "base_uniform", "base_doge")]
    assert scripts["report"] == ["slurm/verb.sh", "report", *runs, "-o", "chain/report.html"]
    assert not Path("chain").exists()


@pytest.mark.usefixtures("folder")
def test_options_of_sbatch_for_all_stages_and_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sbatch", "--partition=cpu", "--sbatch=--comment='two words'", "--sbatch_base", "-p gpu --nodes=2"]
    commands = shown(capsys, *options)
    everywhere = ["--partition=cpu", "--comment=two words"]
    for command in commands:
        place = command.index(everywhere[0])
        assert command[place : place + 2] == everywhere
        assert (command[place + 2 : place + 5] == ["-p", "gpu", "--nodes=2"]) == ("slurm/base.sh" in command)


@pytest.mark.usefixtures("folder")
def test_options_of_the_programs_arrive_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set_proxy", "training.seed=9", 'doge.target=["x"]', "--set_base", "training.seed=$(echo 3)"]
    commands = shown(
        capsys,
        *options[:3],
        "--set_base",
        "training.seed=8",
        "--data_root",
        SUITE,
        "--suite",
        "doge6",
        "--tasks",
        "sciq",
    )
    proxy = of_stage(commands, "proxy")
    assert proxy[proxy.index("--set") :] == ["--set", *options[1:3], "--output", "chain/proxy"]
    base = of_stage(commands, "base-doge")
    assert base[base.index("--set") : base.index("--output")] == ["--set", "training.seed=8"]
    measure = of_stage(commands, "eval-doge")
    assert measure[-6:] == ["--suite", "doge6", "--data_root", SUITE, "--tasks", "sciq"]
    assert 'training.seed: "$(echo 3)" cannot stand' in refusal(capsys, *options)


def test_a_recipe_makes_the_store_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [word for kind in ("proxy", "base") for word in (f"--set_{kind}", f"data.path={folder}/new")]
    commands = shown(capsys, *both, "--recipe", "recipe.json", "--prepare_tasks", "3", "--sbatch_prepare", "-c 4")
    shares, merge = of_stage(commands, "prepare"), of_stage(commands, "merge")
    script = ["slurm/prepare.sh", "recipe.json", "--output", f"{folder}/new"]
    assert shares[-8:] == ["--output=chain/logs/%x-%A_%a.out", "-c", "4", "--array=0-2", *script]
    assert merge[-8:] == ["-c", "4", "--dependency=afterok:PREPARE", "--kill-on-invalid-dep=yes", *script]
    assert "--dependency=afterok:MERGE" in of_stage(commands, "proxy")
    there = shown(capsys, "--recipe", "recipe.json")
    assert [line[:4] for line in there[:2]] == [["#", f"{name}:", "already", "there,"] for name in ("prepare", "merge")]
    assert not any(word.startswith("--dependency") for word in of_stage(there, "proxy"))


def test_what_is_measured_by_the_same_command_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, (command,) = folder / "chain/base_doge", [c for c in shown(capsys) if "--job-name=doge-eval-doge" in c]
    (run / "hf").mkdir(parents=True)
    for time, file in enumerate(("hf/config.json", "results.json")):
        (run / file).write_text("{}")
        os.utime(run / file, (time, time))
    assert any("--job-name=doge-eval-doge" in line for line in shown(capsys))
    record = {"stages": [{"stage": "eval-doge", "job": "7", "runs": command[command.index("slurm/eval.sh") :]}]}
    (folder / "chain/pipeline.json").write_text(json.dumps(record))
    assert ["#", "eval-doge:", "already", "there,", "chain/base_doge/results.json"] in shown(capsys)
    assert any("--job-name=doge-eval-doge" in line for line in shown(capsys, "--num_fewshot", "2"))
    os.utime(run / "hf/config.json", (9, 9))
    assert any("--job-name=doge-eval-doge" in line for line in shown(capsys))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set_proxy", "doge.mu=-1"], "proxy.json: doge.mu: -1 cannot stand"),
        (["--set_base", "training.step=3"], "base.json: training.step: unknown key; did you mean 'steps'?"),
        (["--set_base", "data.path=none"], "none: "),
        (["--set_base", 'data.train_domains=["a", "b"]'], "the proxy will learn: has a weight for 'c', which is no"),
        (["--set_proxy", 'data.train_domains=["a", "b"]'], "the proxy will learn: has no weight for 'c'"),
        (["--recipe", "none.json"], "none.json: cannot be read"),
        (["--recipe", "recipe.json", "--set_base", "data.path=other"], "makes one store, and the proxy reads "),
        (["--prepare_tasks", "0"], "argument --prepare_tasks: invalid positive whole number value: '0'"),
        (["--num_fewshot", "-1"], "argument --num_fewshot: invalid whole number value: '-1'"),
        (["--output", "proxy.json"], "--output proxy.json: cannot be made (Not a directory)"),
        (["--tasks", "scique"], "--tasks scique: is no task of lm-eval; did you mean"),
        (["--suite", "doge6", "--data_root", "none"], "--data_root none: lacks "),
        (["--sbatch", "--partition='gpu"], "--sbatch: \"--partition='gpu\" cannot be split into words (No closing"),
        (["--sbatch_eval", "--nodes=2 --dependency=singleton"], "--sbatch_eval: '--dependency=singleton' is what the"),
        (["--sbatch", "-a0-3"], "--sbatch: '-a0-3' is what the pipeline decides itself"),
        (["--sbatches", "x"], "unrecognized arguments: --sbatches x"),
        (["--output", "chain"], "sbatch: is not there; submit where Slurm's programs are, on a login node"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_a_mistake_is_one_line_before_anything_is_submitted(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *options)
    assert not Path("chain/pipeline.json").exists()


def test_a_recipe_without_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"sources": [{"files": ["a.txt"], "domain": "a"}]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert "recipe.json: tokenizer: is missing, and jobs that share" in refusal(capsys, "--recipe", "recipe.json")


def test_a_record_that_is_none_of_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "chain").mkdir()
    (folder / "chain/pipeline.json").write_text('{"stages": [3]}')
    message = refusal(capsys, "--output", "chain")
    assert "chain/pipeline.json: is none of ours; name another --output, or remove it" in message
