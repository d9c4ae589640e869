"""From a comparison to its stages: what is one stage, what depends on what, what a change touches, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import DogeError
from doge_ds.experiments.chains import ANOTHER_ORDER, Comparison, Planner, reference_config
from doge_ds.experiments.runner import write_inputs
from doge_ds.experiments.stages import Stage
from doge_ds.mixture_schedule import chosen_schedule
from doge_ds.planning import make_plan
from doge_ds.training.model import model_config
from tests.distributed.small_runs import MODEL, SEQUENCE_LENGTH, small_store
from tests.experiments.comparisons import write_comparison

DOREMI = ["mixtures.doge.proxy.method=doremi", 'proxy_settings.data.train_domains=["a", "b", "c"]']


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("chains") / "store")


@pytest.fixture(scope="module")
def unchanged(store: Path) -> tuple[Path, Planner, set[str]]:
    """A comparison, its planner, and the identities of its stages."""
    weights = {"same": dict.fromkeys("abc", 1 / 3), "other": {"a": 0.5, "b": 0.5, "c": 0.0}}
    for name, domains in weights.items():
        (store.parent / f"{name}.json").write_text(json.dumps({"version": 1, "domains": domains}))
    planner, _ = plan(path := write_comparison(store.parent, store, seeds=[0]))
    return path, planner, set(planner.stages)


def plan(path: Path, *settings: str, folder: Path | None = None) -> tuple[Planner, Comparison]:
    planner = Planner(folder or path.parent / "out", ranks=1)
    return planner, planner.add(path, settings)


def labels(stages: dict[str, Stage]) -> list[str]:
    return [f"{stage.kind} {stage.label} {stage.seed}" for stage in stages.values()]


def test_a_seed_is_done_before_the_next_one_and_each_stage_after_what_it_reads(tmp_path: Path, store: Path) -> None:
    planner, comparison = plan(write_comparison(tmp_path, store))
    assert labels(planner.stages) == [
        f"{kind} {seed}"
        for seed in (0, 1)
        for kind in ("base uniform", "eval uniform", "proxy doge", "base doge", "eval doge")
    ]
    chain = comparison.chains["doge"][1]
    assert chain["proxy"].after == ()
    assert chain["base"].after == (chain["proxy"].identity,)
    assert chain["eval"].after == (chain["base"].identity,)
    assert chain["base"].words == [
        *("doge_ds/train_base.py", "--config", f"{chain['base'].directory}.json"),
        *("--mixture", f"{chain['proxy'].directory}/mixture.json", "--output", str(chain["base"].directory)),
    ]
    assert chain["eval"].words == [
        *("eval/run.py", "--model", f"{chain['base'].directory}/hf", "--data", str(store)),
        *("--output", f"{chain['eval'].directory}/results.json"),
    ]
    assert comparison.groups == {"all": ["a", "b", "c", "x"]}
    assert comparison.given == {"uniform": dict.fromkeys("abc", 1 / 3)}
    assert not (tmp_path / "out").exists()


def test_bases_of_one_seed_are_paired(tmp_path: Path, store: Path) -> None:
    """Nothing but the mixture differs, so initialisation and the order inside each domain are the same."""
    _, comparison = plan(write_comparison(tmp_path, store))
    configs = {name: chains[1]["base"].config for name, chains in comparison.chains.items()}
    assert configs["uniform"] == configs["doge"]
    assert configs["uniform"] is not None
    assert configs["uniform"]["training"]["seed"] == 1


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("proxy_settings.doge.mu=0.5", {"proxy doge", "base doge", "eval doge"}),
        ("mixtures.doge.proxy.training.learning_rate=0.01", {"proxy doge", "base doge", "eval doge"}),
        ("base_settings.training.learning_rate=0.01", {"base uniform", "eval uniform", "base doge", "eval doge"}),
        ("mixtures.doge.base.training.steps=5", {"base doge", "eval doge"}),
        ("mixtures.uniform=other.json", {"base uniform", "eval uniform"}),
        ("mixtures.uniform=natural", set()),  # which is the same in this store
        ("evaluation.domains=[\"a\"]", {"eval uniform", "eval doge"}),
        ("seeds=[5]", {f"{kind} {name}" for kind in ("base", "eval") for name in ("uniform", "doge")} | {"proxy doge"}),
        ("base_settings.training.checkpoint_every=2", set()),
        ("proxy_settings.training.rank_timeout=5", set()),
        ("mixtures.uniform=same.json", set()),
        ("base_settings.mixture=natural", set()),
        ("against=doge", set()),
        ("evaluation.num_fewshot=3", set()),
    ],
)  # fmt: skip
def test_a_change_touches_what_depends_on_it_and_nothing_else(
    unchanged: tuple[Path, Planner, set[str]], setting: str, changed: set[str]
) -> None:
    path, planner, before = unchanged
    chains = planner.add(path, [setting]).chains
    stages = [stage for of in chains.values() for chain in of.values() for stage in chain.values()]
    assert {f"{stage.kind} {stage.label}" for stage in stages if stage.identity not in before} == changed


def test_the_store_decides_by_its_content_not_by_its_place(tmp_path: Path, store: Path) -> None:
    path = write_comparison(tmp_path, store, seeds=[0])
    (tmp_path / "link").symlink_to(store)
    other = small_store(tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["domains"]["a"]["train"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    before = plan(path)[0].stages.keys()
    both = ("proxy_settings.data.path", "base_settings.data.path")
    assert plan(path, *(f"{key}={tmp_path / 'link'}" for key in both))[0].stages.keys() == before
    assert not plan(path, *(f"{key}={other}" for key in both))[0].stages.keys() & before


def test_comparisons_share_stages_whatever_their_labels(tmp_path: Path, store: Path) -> None:
    planner = Planner(tmp_path / "out", ranks=1)
    first = planner.add(write_comparison(tmp_path, store, "first"))
    stages = len(planner.stages)
    mixtures = {
        "plain": "uniform",
        "staged": {"proxy": {}, "stages": 2},
        "mu": {"proxy": {"doge.mu": 1.0}, "has_base": False},
    }
    second = planner.add(write_comparison(tmp_path, store, "second", mixtures=mixtures))
    assert second.chains["plain"] == first.chains["uniform"]
    assert second.chains["staged"][0]["proxy"] == first.chains["doge"][0]["proxy"]
    assert second.chains["staged"][0]["base"] != first.chains["doge"][0]["base"]
    assert second.chains["mu"][0].keys() == {"proxy"}
    assert len(planner.stages) == stages + 2 * 3


def test_a_stage_that_is_there_is_found_under_any_label(tmp_path: Path, store: Path) -> None:
    path = write_comparison(tmp_path, store, seeds=[0])
    stage = plan(path)[1].chains["uniform"][0]["base"]
    place = stage.directory.with_name(f"base-another-name-s0-{stage.identity[:10]}")
    (place / "hf").mkdir(parents=True)
    assert plan(path)[1].chains["uniform"][0]["base"].directory == place
    stage.directory.mkdir()
    assert not plan(path)[1].chains["uniform"][0]["base"].is_finished
    (place / "hf/config.json").write_text("{}")
    found = plan(path)[1].chains["uniform"][0]["base"]
    assert (found.directory, found.is_finished) == (place, True)


def test_operations_are_those_of_doge_ds_plan(tmp_path: Path, store: Path) -> None:
    _, comparison = plan(write_comparison(tmp_path, store, seeds=[3]))
    for kind, file, mixture in (("proxy", "proxy.json", None), ("base", "base.json", "uniform")):
        flops = make_plan(tmp_path / file, [], mixture, None, None).flops
        assert flops is not None
        assert comparison.chains["doge"][3][kind].flops == flops.total  # type: ignore[index]


def test_only_proxies_without_a_base(tmp_path: Path, store: Path) -> None:
    planner, comparison = plan(write_comparison(tmp_path, store, base=None))
    assert labels(planner.stages) == ["proxy doge 0", "proxy doge 1"]
    assert comparison.given == {"uniform": dict.fromkeys("abc", 1 / 3)}
    assert comparison.groups == {"all": ["a", "b", "c"]}


def test_settings_may_be_for_both_methods(tmp_path: Path, store: Path) -> None:
    for name, other in (("doge", "doremi"), ("doremi", "doge")):
        mixtures = {"plain": {"proxy": {}}, "other": {"proxy": {"method": other}}}
        path = write_comparison(tmp_path, store, name, seeds=[0], mixtures=mixtures, base=None)
        values = json.loads((tmp_path / "proxy.json").read_text())
        del values["doge"]
        values["data"]["train_domains"] = ["a", "b", "c"]
        (tmp_path / "proxy.json").write_text(json.dumps({**values, "method": name}))
        settings = ["proxy_settings.doge.target=mix", "proxy_settings.doremi.smoothing=0.01"]
        stages = [chain[0]["proxy"] for chain in plan(path, *settings)[1].chains.values()]
        found = {str(stage.config["method"]): stage.config for stage in stages if stage.config}
        assert found["doremi"]["doremi"]["smoothing"] == 0.01
        assert found["doge"]["doge"]["target"] == "mix"


def test_doremi_has_a_reference_like_the_proxy(tmp_path: Path, store: Path) -> None:
    entry = {"proxy": {"method": "doremi", "data.train_domains": ["a", "b"]}, "reference_mixture": "given.json"}
    (tmp_path / "given.json").write_text('{"version": 1, "domains": {"a": 0.75, "b": 0.25}}')
    path = write_comparison(tmp_path, store, base=None, seeds=[2], mixtures={"uniform": "uniform", "doremi": entry})
    chain = plan(path)[1].chains["doremi"][2]
    reference, proxy = chain["reference"], chain["proxy"]
    assert reference.words[-4:-2] == ["--mixture", str(reference.schedule_file)]
    assert reference.weights == [[0, {"a": 0.75, "b": 0.25}]]
    assert proxy.words[-4:-2] == ["--reference", f"{reference.directory}/hf"]
    assert proxy.after == (reference.identity,)
    config = reference.config
    assert config is not None
    assert proxy.config is not None
    assert config["model"] == proxy.config["model"]
    assert config["data"]["train_domains"] == ["a", "b"]
    differing = {key for key in config["training"] if config["training"][key] != proxy.config["training"].get(key)}
    assert differing == {"global_batch_size", "micro_batch_size", "export_dtype", "seed"}
    assert config["training"]["seed"] == 2 + ANOTHER_ORDER
    assert config["training"]["global_batch_size"] == 2 * proxy.config["training"]["sequences_per_domain"]
    other = plan(path, "mixtures.doremi.reference_mixture=uniform")[1].chains["doremi"][2]
    assert other["reference"].identity != reference.identity
    assert other["proxy"].identity != proxy.identity


@pytest.mark.parametrize("cut", [None, 2])
def test_a_reference_runs_on_as_many_ranks_as_the_proxy(tmp_path: Path, store: Path, cut: int | None) -> None:
    write_comparison(tmp_path, store)
    proxy = load_config(ProxyConfig, tmp_path / "proxy.json", [f"training.micro_batch_size={cut or 'null'}"])
    for ranks in (1, 2):
        config = reference_config(proxy, ["a", "b", "c"], ranks)
        (tmp_path / "reference.json").write_text(config.model_dump_json())
        assert load_config(BaseConfig, tmp_path / "reference.json") == config
        assert make_plan(tmp_path / "reference.json", [], "uniform", ranks, None).tokens == 12 * 12 * 16


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"proxy": "none.json"}, [], "none.json: cannot be read"),
        ({}, ["mixtures.doge.proxy.doge.mu=-1"], "c.json: mixtures.doge: {}/proxy.json: doge.mu: -1 cannot stand"),
        ({}, ["base_settings.training.step=3"], "base.json: training.step: unknown key; did you mean 'steps'?"),
        ({}, ["base_settings.data.path=none"], "c.json: none: is no token store"),
        ({}, ["mixtures.uniform=unifrom"], "--mixture unifrom: 'unifrom' is no file and names no mixture"),
        ({}, ["mixtures.uniform=none.json"], "{}/none.json: cannot be read"),
        ({}, ["base_settings.data.train_domains=[\"a\", \"b\"]"], "the proxy will learn: has a weight for 'c'"),
        ({}, ["base_settings.training.steps=100000"], "c.json: mixtures.uniform: data.max_epochs: "),
        ({}, ["base_settings.deepspeed.zero_optimization.stage=2"], "mixtures.uniform: deepspeed.zero_optimization"),
        ({}, ["mixtures.doge.stages=13"], "mixtures.doge: the proxy: has 12 logged steps, too few for 13 stages"),
        ({}, ["mixtures.doge.stages=4", "proxy_settings.training.log_every=5"], "has 3 logged steps, too few for 4"),
        ({}, ["mixtures.doge.stages=4", "proxy_settings.doge.update_every=6"], "a part of 4 without any update of the"),
        ({}, ["mixtures.doge.stages=9", "base_settings.training.steps=5"], "a base of 5 steps: has too few for 9"),
        ({}, [f"mixtures.uniform={'m' * 300}"], "is no file and names no mixture"),
        ({}, ["mixtures.doge.proxy.method=doremi"], "the proxy will learn: has a weight for 'x'"),
        ({}, ["mixtures.doge.proxy.method=[\"doremi\"]"], 'method: ["doremi"] cannot stand'),
        ({}, ["mixtures.doge.reference_mixture=natural"], "reference_mixture: is of no use where no reference"),
        ({}, [*DOREMI, "proxy_settings.deepspeed.zero_optimization=3"], "deepspeed.zero_optimization: 3 is no section"),
        ({}, ["evaluation.domains=[\"q\"]"], "has no domain 'q'"),
        ({}, ["groups={\"g\": [\"y\"]}"], "c.json: groups.g: 'y' is not among the evaluated domains; known are: a, b"),
        ({}, ["evaluation.suite=doge6", "evaluation.data_root=none"], "--data_root none: lacks "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_runs(
    tmp_path: Path, store: Path, changes: dict[str, Any], settings: list[str], message: str
) -> None:
    with pytest.raises(DogeError) as raised:
        plan(write_comparison(tmp_path, store, **changes), *settings)
    assert message.replace("{}", str(tmp_path)) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_stage_has_the_weights_that_its_file_had_when_it_was_planned(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"version": 1, "domains": {"a": 0.5, "b": 0.2, "c": 0.3}}))
    _, comparison = plan(write_comparison(tmp_path, store, seeds=[0], mixtures={"m": "m.json"}))
    base = comparison.chains["m"][0]["base"]
    assert base.words[base.words.index("--mixture") + 1] == str(base.schedule_file)
    file.write_text(json.dumps({"version": 1, "domains": {"a": 0.1, "b": 0.1, "c": 0.8}}))
    write_inputs(base)
    config = load_config(BaseConfig, tmp_path / "base.json")
    (stage,) = chosen_schedule(config, str(base.schedule_file), dict.fromkeys("abc", 10), tmp_path / "base.json")
    assert stage.mixture.domains == {"a": 0.5, "b": 0.2, "c": 0.3}
    _, changed = plan(tmp_path / "c.json")
    assert changed.chains["m"][0]["base"].identity != base.identity


def test_models_that_runs_start_from_or_are_compared_with_count_by_their_content(tmp_path: Path, store: Path) -> None:
    tokenizer = TokenStore(store).manifest.tokenizer
    shape = model_config(MODEL, tokenizer.vocabulary_size, tokenizer.end_of_text_id, SEQUENCE_LENGTH)
    model = AutoModelForCausalLM.from_config(shape)
    model.save_pretrained(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    path = write_comparison(tmp_path, store, seeds=[0], groups={"all": ["a", "b", "c"]})
    doremi = [*DOREMI, f"mixtures.doge.proxy.doremi.reference={tmp_path}/model"]
    started = [f'base_settings.model={{"pretrained": "{tmp_path}/model"}}']

    def identities() -> list[str]:
        proxy = plan(path, *doremi)[1].chains["doge"][0]["proxy"].identity
        return [proxy, plan(path, *started)[1].chains["uniform"][0]["base"].identity]

    before = identities()
    assert identities() == before
    elsewhere = [setting.replace("/model", "/moved") for setting in doremi]
    assert plan(path, *elsewhere)[1].chains["doge"][0]["proxy"].identity == before[0]
    # A run's directory stands for its export: what tells the model is in there.
    shutil.copytree(tmp_path / "model", tmp_path / "run/hf")
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "run/config.json").write_text("{}")
    of_run = [setting.replace("/model", "/run") for setting in doremi]
    assert plan(path, *of_run)[1].chains["doge"][0]["proxy"].identity == before[0]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "model")
    assert all(now != then for now, then in zip(identities(), before, strict=True))
