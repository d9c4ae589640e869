"""What the two training programs refuse before any training, in one line and with status 2."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from doge_ds import train_base, train_proxy
from doge_ds.errors import DogeError
from doge_ds.training.launch import run_program
from tests.distributed.small_runs import MODEL, SEQUENCE_LENGTH, small_store, write_config
from tests.stores import make_store

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"proxy": train_proxy, "base": train_base}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("programs") / "store")


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rank 0 of two: everything here is refused before the other rank is waited for."""
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)


def refusal(stage: str, config: Path, output: Path, *more: str) -> str:
    arguments = ["--config", str(config), "--output", str(output), *more]
    if stage == "base" and "--mixture" not in more:
        arguments += ["--mixture", "uniform"]
    with pytest.raises(DogeError) as caught:
        PROGRAMS[stage].main(arguments)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("proxy", ["training.stps=4"], "training.stps: unknown key; did you mean 'steps'?"),
        ("proxy", ["training.steps=-4"], "training.steps: -4 cannot stand"),
        ("base", ['training.steps="4"'], 'training.steps: "4" cannot stand'),
        ("proxy", ['doge.target=["y"]'], "doge.target: 'y' is not in"),
        ("proxy", ['data.train_domains=["a","bb"]'], "data.train_domains: 'bb' is not in {store}; did you mean 'b'?"),
        ("base", ['data.train_domains=["a","bb"]'], "data.train_domains: 'bb' is not in"),
        ("proxy", ['doge.target=["a","b","c","x"]'], "every domain of the store is a target"),
        ("proxy", ["doge.domains_per_step=9"], "doge.domains_per_step: is 9 of 3 train domains; leave it out"),
        (
            "proxy",
            ["doge.domains_per_step=2", 'doge.target=["b"]', 'data.train_domains=["a","b","c"]'],
            "doge.target: names the train domain 'b', which most steps would not have",
        ),
        ("proxy", ["training.sequences_per_domain=5"], "5 cannot be divided by 2 ranks; 4 or 6 would do"),
        ("proxy", ["training.micro_batch_size=3"], "4 cannot be divided by 2 ranks x micro-batches of 3; 6 would do"),
        (
            "base",
            ["training.global_batch_size=6"],
            "6 cannot be divided by 2 ranks x micro-batches of 2; 4 or 8 would do",
        ),
        ("proxy", ["data.sequence_length=20000"], "0 whole training sequences where at least 1 must be"),
        ("base", ["data.sequence_length=20000"], "0 whole training sequences"),
        ("base", ['data.train_domains=["a","a","b"]'], "names a domain twice"),
        ("proxy", ['data.train_domains=["a","a","b"]'], "names a domain twice"),
        ("proxy", ["training.learning_rate=Infinity"], 'training.learning_rate: "Infinity" cannot stand'),
        ("proxy", ["doge.mu=NaN"], 'doge.mu: "NaN" cannot stand'),
        ("proxy", ['deepspeed.zero_optimization.offload_optimizer={"device":"cpu"}'], "cannot be used by the proxy"),
        ("proxy", ["deepspeed.bf16.check_grad_overflow=false"], "check_grad_overflow: must stay on in the proxy"),
        ("proxy", ["deepspeed.zero_optimization=2"], "zero_optimization: 2 is no object"),
        ("base", ["deepspeed.optimizer=AdamW"], "optimizer: 'AdamW' is no object"),
        ("proxy", ["training.steps=4000"], "would be read 21.3 times, more than 4; lower training.steps or its weight"),
        ("base", ["training.steps=3000"], "would be read 10.7 times, more than 4"),
        ("proxy", ["model.n_layers=3"], "model.n_layers: gpt2 has no such setting; did you mean 'n_layer'?"),
        ("base", ["model.vocab_size=100"], "is 100, but the store's tokenizer has 64 tokens"),
        ("proxy", ["deepspeed.zero_optimization.stage=3"], "is 3; this program needs 2"),
        ("base", ["deepspeed.zero_optimization.stage=2"], "is 2; this program needs 3"),
        ("proxy", ["deepspeed.gradient_accumulation_steps=4"], "says 4 where the run configuration gives 1"),
        ("proxy", ["deepspeed.train_batch_size=7"], "deepspeed.train_batch_size: says 7"),
        (
            "proxy",
            ["deepspeed.zero_optimization.overlap_com=true"],
            "deepspeed.zero_optimization.overlap_com: unknown key; did you mean 'overlap_comm'?",
        ),
        ("base", ["deepspeed.bf16.enabled=perhaps"], 'deepspeed.bf16.enabled: "perhaps" cannot stand; it should be'),
        ("base", ["deepspeed.data_types=5"], "deepspeed.data_types: 5 cannot stand"),
        ("proxy", ["deepspeed.bf17={}"], "deepspeed.bf17: unknown key; did you mean 'bf16'?"),
        (
            "base",
            ["deepspeed.optimizer.params.betaz=0.9"],
            "params.betaz: AdamW has no such setting; did you mean 'betas",
        ),
        ("base", ["model.pretrained=null"], "model.pretrained: None is no model's name; give a Hugging Face folder"),
        ("proxy", ["data.path=/nowhere/at/all"], "/nowhere/at/all: is no token store"),
    ],
)
def test_configurations(stage: str, settings: list[str], message: str, store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, stage)
    values = json.loads(config.read_text())
    values["deepspeed"] = json.loads(Path(values["deepspeed"]).read_text())  # so that --set reaches into it
    config.write_text(json.dumps(values))
    assert message.format(store=store) in refusal(stage, config, tmp_path / "run", "--set", *settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "run", "settings", "twin"),
    [
        ("proxy", "proxy_82m", [], "zero2_cpu.json"),
        ("base", "base_124m", [], "zero3_cpu.json"),
        ("base", "base_124m", [f"deepspeed={ROOT / 'ds_configs/zero3_offload.json'}"], "zero3_offload_cpu.json"),
    ],
)
def test_what_ships_for_gpus_names_its_twin_where_there_is_none(
    stage: str, run: str, settings: list[str], twin: str, store: Path, tmp_path: Path
) -> None:
    config = ROOT / f"ds_configs/runs/{run}.json"
    found = refusal(stage, config, tmp_path / "run", "--set", f"data.path={store}", *settings)
    assert "deepspeed.optimizer: is DeepSpeed's own Adam, which is for GPUs, and DeepSpeed finds none here" in found
    assert f"use ds_configs/{twin}, or set deepspeed.optimizer.params.torch_adam=true" in found
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", PROGRAMS)
def test_a_model_that_was_trained_with_another_tokenizer_is_not_trained_on(
    stage: str, store: Path, tmp_path: Path
) -> None:
    settings = {**MODEL, "vocab_size": 64, "n_positions": SEQUENCE_LENGTH}
    AutoConfig.for_model(**settings, doge_ds_tokenizer_sha256="0" * 64).save_pretrained(tmp_path / "hf")
    config = write_config(tmp_path / "run.json", store, stage)
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "model": {"pretrained": str(tmp_path / "hf")}}))
    message = "model.pretrained: was trained with another tokenizer than the store's"
    assert message in refusal(stage, config, tmp_path / "run")


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"a": 0.5, "b": 0.5}, "has no weight for 'c'"),
        ({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}, "has a weight for 'd', which is no train domain"),
        ({"a": 0.5, "b": 0.3, "c": 0.1}, "the weights sum to 0.9"),
        ({"a": 1.2, "b": -0.2, "c": 0.0}, "-0.2 is no weight"),
        ({"a": 0.9999999, "b": 0.0000001, "c": 0.0}, "domain 'b': "),
    ],
)
def test_mixtures(domains: dict, message: str, store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "base")
    mixture = tmp_path / "mixture.json"
    mixture.write_text(json.dumps({"version": 1, "domains": domains}))
    assert message in refusal("base", config, tmp_path / "run", "--mixture", str(mixture))


def test_a_domain_shorter_than_one_sequence_is_named(tmp_path: Path) -> None:
    ids = np.arange(200) % 60
    make_store(tmp_path / "store", {"a": ids, "b": ids + 1, "c": ids[:5], "x": ids}, {})
    for stage in PROGRAMS:
        config = write_config(
            tmp_path / f"{stage}.json", tmp_path / "store", stage, training={"steps": 1, "warmup_steps": 0}
        )
        assert "'c'" in refusal(stage, config, tmp_path / "run")


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    folder = small_store(tmp_path / "store")
    config = write_config(tmp_path / "run.json", folder, "proxy")
    file = folder / "b/train.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    assert "b/train.bin: has 23998 bytes where the manifest says 24000" in refusal("proxy", config, tmp_path / "run")
    file.unlink()
    assert "b/train.bin: is missing, but the manifest lists it" in refusal("proxy", config, tmp_path / "run")
    file.write_bytes(whole)
    (folder / "tokenizer/about.txt").write_text("another tokenizer")
    assert "is not the tokenizer that the manifest names" in refusal("proxy", config, tmp_path / "run")
    (folder / "manifest.json").write_text('{"version": 1}')
    assert "manifest.json: is no manifest of ours: dtype" in refusal("proxy", config, tmp_path / "run")


def test_nothing_that_exists_is_overwritten(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "proxy")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/draft.txt").write_text("years of work")
    assert "exists and is no run of ours" in refusal("proxy", config, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["draft.txt"]
    assert "draft.txt: is a file" in refusal("proxy", config, tmp_path / "thesis/draft.txt")
    assert "draft.txt: is a file" in refusal("proxy", config, tmp_path / "thesis/draft.txt/run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "x.json", "--resume", "maybe"], "invalid choice: 'maybe'"),
        (["--config", "nowhere.json"], "nowhere.json: cannot be read (No such file or directory)"),
        (["--config", "x.json", "--setting", "a=1"], "unrecognized arguments: --setting a=1"),
    ],
)
def test_command_lines(arguments: list[str], message: str) -> None:
    with pytest.raises(DogeError) as caught:
        train_proxy.main(arguments)
    assert message in str(caught.value)


def test_half_a_launcher_is_refused(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK")
    config = write_config(tmp_path / "run.json", store, "proxy")
    assert "environment variable LOCAL_RANK: is missing" in refusal("proxy", config, tmp_path / "run")
    monkeypatch.setenv("LOCAL_RANK", "first")
    assert "are no numbers" in refusal("proxy", config, tmp_path / "run")


def test_a_rank_that_is_no_number_is_told_and_not_stumbled_over(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("doge_ds.training.launch.SECONDS_UNTIL_OTHER_RANKS_SPEAK", 0)
    monkeypatch.setenv("RANK", "first")
    config = write_config(tmp_path / "run.json", store, "proxy")
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: train_proxy.main(["--config", str(config), "--output", str(tmp_path / "run")]))
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "on rank first: error: RANK, WORLD_SIZE, LOCAL_RANK" in printed
    assert "Traceback" not in printed


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for module in PROGRAMS.values():
        with pytest.raises(SystemExit) as caught:
            module.main(["--help"])
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert "deepspeed doge_ds/train_" in printed
        assert "75 saved and not finished" in printed
        assert "--resume" in printed


def test_an_unexpected_error_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    def broken() -> int:
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit) as caught:
        run_program(broken)
    assert caught.value.code == 1
    assert "ZeroDivisionError: a defect of ours" in capsys.readouterr().err


@pytest.mark.parametrize("stage", PROGRAMS)
def test_evaluations_without_any_held_out_text(stage: str, tmp_path: Path) -> None:
    tokens = np.arange(4000, dtype=np.uint16) % 64
    # The store's other domains have some; a base that is not trained on them does not count it.
    valid = {"y": tokens[:100]} if stage == "base" else {}
    make_store(tmp_path / "store", dict.fromkeys("abcxy", tokens), valid)
    config = write_config(tmp_path / "run.json", tmp_path / "store", stage, training={"eval_every": 5})
    printed = refusal(stage, config, tmp_path / "run")
    assert f"training.eval_every: no domain of the run has held-out text in {tmp_path / 'store'}; leave it" in printed
    assert not (tmp_path / "run").exists()
