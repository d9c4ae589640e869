"""Identities and directories of stages."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from doge_ds.config import BaseConfig, ProxyConfig, RunConfig
from doge_ds.experiments.stages import FREE_KEYS, RESULTS, Stage, deciding_values, identity_of, place_of
from doge_ds.training.run_directory import FREE_KEYS as FREE_OF_A_RUN

COMMON: dict[str, Any] = {
    "model": {"model_type": "gpt2"},
    "data": {"path": "store", "sequence_length": 8},
    "deepspeed": {"zero_optimization": {"stage": 3}},
}
TRAINING = {"steps": 5, "learning_rate": 0.1}


def proxy(**changes: Any) -> ProxyConfig:
    return ProxyConfig.model_validate({**COMMON, "training": {**TRAINING, "sequences_per_domain": 2}, **changes})


def base(**training: Any) -> BaseConfig:
    return BaseConfig.model_validate({**COMMON, "training": {**TRAINING, "global_batch_size": 2, **training}})


def test_what_no_result_depends_on_may_change_in_an_unfinished_run_too() -> None:
    """Otherwise the run that is there would be found by its identity, and refuse to go on."""
    assert {f"config.{key}" for key in FREE_KEYS} <= set(FREE_OF_A_RUN)


def test_keys_that_decide_and_keys_that_do_not() -> None:
    first = identity_of("base", base(), store="x")
    assert identity_of("base", base(keep_checkpoints=9, micro_batch_size=1, peak_tflops=3.0), store="x") == first
    patient = base().model_copy(update={"data": base().data.model_copy(update={"max_epochs": 9.0})})
    assert identity_of("base", patient, store="x") == first  # it refuses or lets pass
    others = [base(seed=1), base(steps=6), base(warmup_steps=1), base(log_every=5), base(eval_every=2)]
    found = {identity_of("base", other, store="x") for other in others} | {identity_of("base", base(), store="y")}
    assert len(found | {first}) == len(others) + 2
    assert identity_of("reference", base(), store="x") == first  # the same program


@pytest.mark.parametrize(
    ("config", "read", "unread"),
    [(proxy(), "doge", "doremi"), (proxy(method="doremi"), "doremi", "doge"), (base(), "training", "doge")],
)
def test_the_section_of_the_other_method_decides_nothing(config: RunConfig, read: str, unread: str) -> None:
    values = deciding_values(config)
    assert read in values
    assert unread not in values
    assert "mixture" not in values
    assert "path" not in values["data"]


@pytest.mark.parametrize(
    ("label", "slug"),
    [("mu 0.1", "mu-0.1"), ("a/../b", "a-..-b"), ("Ω", "mixture"), ("x" * 90, "x" * 60), ("", "mixture")],
)
def test_a_directory_has_the_label_in_letters_that_every_shell_takes(tmp_path: Path, label: str, slug: str) -> None:
    place = place_of(tmp_path, "base", label, 3, "0123456789abcdef")
    assert place == tmp_path / "stages" / f"base-{slug}-s3-0123456789"
    assert shlex.quote(place.name) == place.name


def test_a_finished_directory_comes_before_an_unfinished_one(tmp_path: Path) -> None:
    for name in ("eval-a-s0-0123456789", "eval-b-s0-0123456789"):
        (tmp_path / "stages" / name).mkdir(parents=True)
    (tmp_path / "stages/eval-a-s0-0123456789.json").touch()
    assert place_of(tmp_path, "eval", "c", 0, "0123456789ff").name == "eval-a-s0-0123456789"
    (tmp_path / "stages/eval-b-s0-0123456789" / RESULTS["eval"]).touch()
    assert place_of(tmp_path, "eval", "c", 0, "0123456789ff").name == "eval-b-s0-0123456789"


def test_files_beside_a_directory_whose_name_has_dots(tmp_path: Path) -> None:
    stage = Stage("proxy", "mu 0.1", 0, "f" * 64, tmp_path / "proxy-mu-0.1-s0-ffffffffff", (), config={})
    assert stage.log == tmp_path / "proxy-mu-0.1-s0-ffffffffff.log"
    assert stage.words[1:3] == ["--config", str(tmp_path / "proxy-mu-0.1-s0-ffffffffff.json")]
