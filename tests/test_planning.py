"""`doge-ds plan`: what it counts, against brute force and sums by hand, and what it refuses as the programs do."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_ds import cli, train_proxy
from doge_ds.errors import ConfigError, DogeError
from doge_ds.plan import DomainNeed
from doge_ds.planning import Plan, allowed_ranks, as_json, first_repeats, kind_of_run, make_plan
from doge_ds.training.engine import cut_into_micro_batches
from doge_ds.training.model import flops_parts, model_config, parameter_count
from tests.distributed.ranks import ROOT
from tests.distributed.small_runs import MODEL, SEQUENCE_LENGTH, small_store, write_config
from tests.stores import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("planning") / "store")


def plan_of(config: Path, *settings: str, mixture: str | None = None, gpus: int | None = None, **more: Any) -> Plan:
    return make_plan(config, settings, mixture, gpus, more.get("tflops"))


@given(st.integers(1, 200), st.one_of(st.none(), st.integers(1, 20)))
def test_allowed_ranks_are_those_that_the_programs_take(sequences: int, micro_batch_size: int | None) -> None:
    def is_taken(count: int) -> bool:
        try:
            cut_into_micro_batches("sequences_per_domain", sequences, micro_batch_size, count)
        except ConfigError:
            return False
        return True

    assert allowed_ranks(sequences, micro_batch_size) == [n for n in range(1, sequences + 1) if is_taken(n)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 60))
def test_the_first_repeat_is_the_first_step_whose_count_is_above_what_is_there(reads: list[int], there: int) -> None:
    counts = np.cumsum([0, *reads]).tolist()
    found = first_repeats(lambda steps: [DomainNeed("a", 1.0, counts[steps], there)], len(reads))
    late = [step for step in range(len(reads) + 1) if counts[step] > there]
    assert found == ({"a": late[0]} if late else {})


def numbered_store(path: Path, sizes: dict[str, int], length: int) -> Path:
    """Sequences that can be told apart: all tokens of one are its number."""
    make_store(path, {name: np.repeat(np.arange(size), length) for name, size in sizes.items()}, None, 64)
    return path


@pytest.mark.parametrize("options", [{"target": "mix"}, {"target": ["c"], "update_every": 3}, {"domains_per_step": 2}])
def test_a_proxy_repeats_when_the_plan_says(options: dict[str, Any], tmp_path: Path) -> None:
    path = numbered_store(tmp_path / "store", {"a": 40, "b": 40, "c": 40}, 4)
    training = {"steps": 31, "sequences_per_domain": 2}
    config = write_config(
        tmp_path / "run.json", path, "proxy", training=training, data={"sequence_length": 4}, doge=options
    )
    values = json.loads(config.read_text())
    values["doge"] = {"target": "all", **options}
    config.write_text(json.dumps(values))
    plan = plan_of(config, gpus=1)
    from doge_ds.planning import _check

    job = _check("proxy", config, [], None, 1)
    assert isinstance(job, train_proxy.ProxyJob)
    seen: dict[str, Counter[Any]] = {need.name: Counter() for need in plan.needs}
    repeats: dict[str, int] = {}
    for step in range(plan.steps):
        for name, micro_batches in job.loader.domain_batches(step):
            numbers = [int(number) for tokens in micro_batches for number in tokens[:, 0]]
            # One sequence of every train domain has each number: the row of an even mix sees a number once for each.
            seen[name].update(numbers)
            times = len(job.train_domains) if name == "<mix>" else 1
            if max(seen[name].values()) > times and name != "<mix>":
                repeats.setdefault(name, step + 1)
    job.loader.close()
    assert {name: step for name, step in plan.repeats.items() if name != "<mix>"} == repeats
    assert repeats
    assert {need.name: need.needed for need in plan.needs} == {name: sum(seen[name].values()) for name in seen}


def test_a_base_repeats_when_the_plan_says(tmp_path: Path) -> None:
    path = numbered_store(tmp_path / "store", {"a": 50, "b": 9, "c": 30}, 4)
    config = write_config(
        tmp_path / "run.json", path, "base", training={"steps": 12}, data={"sequence_length": 4, "train_domains": None}
    )
    mixture = tmp_path / "mixture.json"
    mixture.write_text('{"version": 1, "domains": {"a": 0.5, "b": 0.2, "c": 0.3}}')
    plan = plan_of(config, mixture=str(mixture))
    from doge_ds.planning import _check

    job = _check("base", config, [], str(mixture), 1)
    seen: set[tuple[int, int]] = set()
    repeats: dict[str, int] = {}
    for sample, (domain, sequence) in enumerate(zip(*job.order.locate(np.arange(12 * 8)), strict=True)):
        if (domain, sequence) in seen:
            repeats.setdefault("abc"[domain], sample // 8 + 1)
        seen.add((domain, sequence))
    assert plan.repeats == repeats == {"b": plan.repeats["b"]}
    assert plan.tokens == 12 * 8 * 4


def test_operations_of_a_proxy_by_hand(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "proxy", doge={"update_every": 2})
    plan = plan_of(config)
    model = model_config(MODEL, 64, 0, SEQUENCE_LENGTH)
    parts, parameters = flops_parts(model, SEQUENCE_LENGTH), parameter_count(model)
    assert parts is not None
    assert plan.flops is not None
    tokens = (40 * 3 + 20 * 1) * 4 * SEQUENCE_LENGTH  # three train domains in every step, the target in every other
    assert plan.tokens == tokens
    assert plan.flops.parameters == parts[0] * tokens
    assert plan.flops.attention == parts[1] * tokens
    assert plan.flops.gradients == 20 * parameters * (2 * 4**2 + 2 * 3)


def test_hours_come_from_the_operations(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "base")
    assert plan_of(config).ranks[0].hours is None
    for plan in (plan_of(config, tflops=2.0), plan_of(config, "training.peak_tflops=5")):
        assert plan.tflops == 2.0
        assert plan.flops is not None
        for rank in plan.ranks:
            assert rank.hours == pytest.approx(plan.flops.total / (rank.ranks * 2e12) / 3600)


def test_ranks_that_are_planned_for(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "base", training={"global_batch_size": 24})
    plan = plan_of(config)
    assert plan.allowed_ranks == [1, 2, 3, 4, 6, 12]
    assert [(rank.ranks, rank.micro_batch_size, rank.micro_batches) for rank in plan.ranks] == [(1, 2, 12), (4, 2, 3)]
    assert [rank.ranks for rank in plan_of(config, gpus=6).ranks] == [6]


def test_checkpoints(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "base")
    sizes = plan_of(config, "training.export_dtype=bfloat16").checkpoints
    parameters = parameter_count(model_config(MODEL, 64, 0, SEQUENCE_LENGTH))
    assert (sizes.one, sizes.kept, sizes.most) == (12 * parameters, 24 * parameters, 36 * parameters)
    assert sizes.exported == 2 * parameters
    once = plan_of(config, "training.checkpoint_every=100").checkpoints
    assert once.kept == once.most == once.one


def test_a_mixture_is_what_was_given_or_uniform(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.json", store, "base")
    assert plan_of(config).mixture == "uniform, because none was given"
    assert plan_of(config, mixture="natural").mixture == "natural"
    own = write_config(tmp_path / "own.json", store, "base", mixture="natural")
    assert plan_of(own).mixture == "of the configuration"
    assert plan_of(own).needs == plan_of(config, mixture="natural").needs


@pytest.mark.parametrize(
    ("kind", "settings", "mixture", "gpus", "message"),
    [
        ("proxy", ["training.stps=4"], None, None, "training.stps: unknown key; did you mean 'steps'?"),
        ("proxy", ["training.steps=4000"], None, None, "would be read 21.3 times, more than 4"),
        ("base", ["training.steps=3000"], None, None, "would be read 10.7 times, more than 4"),
        ("base", [], None, 3, "8 cannot be divided by 3 ranks x micro-batches of 2; 6 or 12 would do"),
        ("base", ["training.micro_batch_size=3"], None, None, "cannot be divided by 1 ranks x micro-batches of 3"),
        ("proxy", [], "uniform", None, "--mixture uniform: belongs to a base run, and this is a proxy; leave it out"),
        ("base", [], "tiny.json", None, "which rounds to 0 of 65536"),
        ("base", [], "missing.json", None, "missing.json: cannot be read"),
        ("base", ["deepspeed.zero_optimization.stage=2"], None, None, "this program needs 3"),
        ("proxy", ["data.path=nowhere"], None, None, "nowhere"),
    ],
)
def test_what_the_programs_refuse_is_refused_in_their_words(
    kind: str, settings: list[str], mixture: str | None, gpus: int | None, message: str, store: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.json", store, kind)
    weights = {"a": 0.5, "b": 0.5 - 1e-6, "c": 1e-6}
    (tmp_path / "tiny.json").write_text(json.dumps({"version": 1, "domains": weights}))
    given_as = str(tmp_path / mixture) if mixture and mixture.endswith(".json") else mixture
    with pytest.raises(DogeError) as caught:
        plan_of(config, *settings, mixture=given_as, gpus=gpus)
    assert message in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_configuration_of_neither_program_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "run.json"
    config.write_text('{"training": {"steps": 3}}')
    with pytest.raises(ConfigError, match="is neither a proxy's configuration nor a base's"):
        kind_of_run(config, [])
    assert kind_of_run(config, ["training.global_batch_size=8"]) == ("base", False)
    assert kind_of_run(config, ["training.global_batch_size=8", "mixture=natural"]) == ("base", True)
    assert kind_of_run(config, ["training.sequences_per_domain=8"]) == ("proxy", False)


@pytest.mark.parametrize("stage", ["proxy", "base"])
def test_runs_for_gpus_are_planned_without_any(stage: str, store: Path, tmp_path: Path) -> None:
    gpus = ROOT / "ds_configs" / ("zero2.json" if stage == "proxy" else "zero3.json")
    config = write_config(tmp_path / "run.json", store, stage, deepspeed=str(gpus))
    plan = plan_of(config)
    assert {item.place for rank in plan.ranks for item in rank.memory.items} == {"device"}
    # One bucket of 50 million or DeepSpeed's 500 million numbers is far more than such a model.
    assert plan.ranks[0].memory.total("device") > 2 * 50_000_000


def test_the_verb_prints_a_plan_and_json(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "run.json", store, "proxy")
    assert cli.main(["plan", "--config", str(config), "--set", "training.steps=400", "--tflops", "0.01"]) == 0
    text = capsys.readouterr().out
    for words in (
        "proxy: ",
        "repeats from step",
        "ranks that the batch allows: 1, 2, 4",
        "rows of domain gradients",
        "hours at 0.01",
    ):
        assert words in text
    assert "warning: the run reads domains more than once" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("warning: ")) <= 120
    assert cli.main(["plan", "--config", str(config), "--set", "training.steps=400", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = as_json(plan_of(config, "training.steps=400"))
    assert found == json.loads(json.dumps(expected))
    assert found["domains"]["x"]["repeats_from_step"] == 188  # 750 sequences of 16 tokens, 4 a step
    assert found["domains"]["x"]["weight"] is None


def test_what_does_not_fit_is_refused_after_the_plan(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "run.json", store, "proxy", deepspeed=str(ROOT / "ds_configs/zero2.json"))
    assert cli.main(["plan", "--config", str(config), "--gpu_memory", "0.1"]) == 2
    shown = capsys.readouterr()
    assert "memory of one rank" in shown.out
    assert shown.err.startswith("error: --gpu_memory 0.1: a rank of 4 needs 0.2")
    assert 'doge.gradient_store="cpu"' in shown.err
    assert cli.main(["plan", "--config", str(config), "--gpu_memory", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "0"], "argument --gpus: 0 is not at least 1"),
        (["--gpus", "two"], "argument --gpus: invalid positive_int value: 'two'"),
        (["--tflops", "-3"], "argument --tflops: -3 is not above 0"),
        (["--gpu_memory", "much"], "argument --gpu_memory: invalid positive_number value: 'much'"),
    ],
)
def test_options_that_cannot_be_meant(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", "x.json", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_it_runs_on_a_login_node_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    """Inside a Slurm step of two tasks, with no run directory and nothing written."""
    config = write_config(tmp_path / "run.json", store, "base")
    before = sorted(tmp_path.rglob("*"))
    slurm = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        [sys.executable, "-m", "doge_ds.cli", "plan", "--config", str(config)],
        env={**os.environ, **slurm, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("base: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_help_teaches_and_loads_no_library() -> None:
    code = (
        "import sys; from doge_ds.cli import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "examples:" in done.stdout
