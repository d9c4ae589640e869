"""What is fuzzed: valid files of every kind, what may become of them, and what reads them in the product.

A case works, or it is refused by an error of ours in one line. Whatever else its reader raises escapes.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from hypothesis import strategies as st

from doge_ds import train_base, train_proxy
from doge_ds.command_line import read_run_arguments
from doge_ds.config import BaseConfig, ProxyConfig, RunConfig, config_hash, load_config
from doge_ds.data.reading.recipes import read_recipe
from doge_ds.data.tokens import TokenStore
from doge_ds.data.verify import find_faults, store_table
from doge_ds.errors import DogeError
from doge_ds.experiments.comparison_config import as_settings, load_comparison
from doge_ds.export import base_order
from doge_ds.json_files import write_json
from doge_ds.mixture import choose_mixture, read_mixture
from doge_ds.mixture_files import exported, read_any
from doge_ds.mixture_schedule import chosen_schedule, continued
from doge_ds.mixture_tables import several_table
from doge_ds.reporting.comparison_figures import write_figures
from doge_ds.reporting.comparison_page import write_comparison_page
from doge_ds.reporting.evaluations import read_comparison
from doge_ds.reporting.page import render_page
from doge_ds.reporting.run_files import read_runs
from doge_ds.training.launch import Ranks
from tests.fuzz.mutations import assignments, files, line_files, whole, whole_lines
from tests.fuzz.valid import (
    BASE,
    BASE_FACTS,
    BASE_LINES,
    BASE_RUN,
    COMPARISON,
    DEEPSPEED,
    DOREMI,
    DOREMI_PROXY,
    FACTS,
    MANIFEST,
    MIXTURE,
    MIXTURE_FILE,
    MIXTURES_COMPARED,
    PROXY,
    PROXY_LINES,
    PROXY_RUN,
    RECIPE,
    RESULTS,
    RUN_CONFIG,
    SCHEDULE,
    SELECTION,
    SUMMARY,
    TOKENS,
    make_runs,
    make_small_store,
    make_store_and_configurations,
    write_configurations,
)

LONGEST_MESSAGE = 4000  # characters of what a user still reads
WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        cases: strategy of what `read` gets.
        prepare: makes what must lie in a folder beside it, once.
        read: raises DogeError or works; must leave the folder as `prepare` made it, but for the file itself.
    """

    cases: st.SearchStrategy[Any]
    read: Callable[[Path, Any], object]
    prepare: Callable[[Path], object] = lambda folder: None


def outcome(kind: Kind, folder: Path, case: Any) -> str:
    """The word works, or the name of the error of ours. Raises what escapes, or AssertionError for a poor message."""
    try:
        kind.read(folder, case)
    except DogeError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, f"a message of several lines: {message[:200]!r}"
        assert message.isprintable(), f"a message that a terminal may take for commands: {message[:200]!r}"
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:200]!r}"
        return type(error).__name__
    return "works"


# Run configurations.


def _use_config(config: RunConfig, folder: Path) -> None:
    """As a run does: its directory gets the configuration, which is read again when the run goes on."""
    write_json(folder / "config.json", config.model_dump(mode="json"))
    again = load_config(type(config), folder / "config.json")
    assert config_hash(again) == config_hash(config)
    if isinstance(config, BaseConfig):
        _use_stages(config, None, folder)


def _use_stages(config: BaseConfig, choice: str | None, folder: Path) -> None:
    """As train_base.py does, before any model is built."""
    stages = chosen_schedule(config, choice, TOKENS, folder / "base.json")
    mixture = continued(stages, folder / "no_run", 0, config.training.steps, change=False)
    mixture.resolved(config)
    write_json(folder / "facts.json", mixture.facts(config.training.steps))
    assert math.isclose(math.fsum(mixture.facts(config.training.steps)["mixture"].values()), 1, rel_tol=1e-6)


def _read_config(kind: type[RunConfig]) -> Callable[[Path, Any], None]:
    def read(folder: Path, raw: bytes) -> None:
        (folder / "run.json").write_bytes(raw)
        _use_config(load_config(kind, folder / "run.json"), folder)

    return read


def _read_mixtures_compared(folder: Path, raw: bytes) -> None:
    """As `doge-ds compare` does, before it reads the run configurations that it names."""
    (folder / "compared.json").write_bytes(raw)
    config = load_comparison(folder / "compared.json")
    for name, entry in config.mixtures.items():
        assert config.against_of(name) in config.mixtures
        as_settings(config.proxy_settings, entry.proxy or {}, config.base_settings, entry.base)


def _read_deepspeed(folder: Path, raw: bytes) -> None:
    (folder / "other.json").write_bytes(raw)
    _use_config(load_config(ProxyConfig, folder / "proxy.json", ['deepspeed="other.json"']), folder)


def _read_settings(kind: type[RunConfig], name: str) -> Callable[[Path, Any], None]:
    def read(folder: Path, settings: list[str]) -> None:
        _use_config(load_config(kind, folder / name, settings), folder)

    return read


# Mixtures and schedules.


def _read_mixture(folder: Path, raw: bytes) -> None:
    file = folder / "given.json"
    file.write_bytes(raw)
    mixture = choose_mixture("given.json", TOKENS, folder=folder)
    mixture.write(folder / "again.json")
    assert read_mixture(folder / "again.json") == mixture


def _read_any_mixture(name: str) -> Callable[[Path, Any], None]:
    def read(folder: Path, raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        mixture = read_any(str(folder / name), normalize=True)
        mixture.write(folder / "again.json")
        several_table({"it": mixture.domains, "uniform": dict.fromkeys(mixture.domains, 1.0)}).encode()
        for form in ("json", "yaml", "megatron"):
            exported(mixture, form, "prefix").encode()

    return read


def _read_schedule(folder: Path, raw: bytes) -> None:
    (folder / "schedule.json").write_bytes(raw)
    config = load_config(BaseConfig, folder / "base.json")
    _use_stages(config, str(folder / "schedule.json"), folder)


def _read_record(folder: Path, raw: bytes) -> None:
    """run.json of a base run that is continued."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "run.json").write_bytes(raw)
    config = load_config(BaseConfig, folder / "base.json")
    stages = chosen_schedule(config, str(folder / "mixture.json"), TOKENS, folder / "base.json")
    for change in (False, True):
        continued(stages, run, 10, 40, change).facts(40)


# Stores and recipes.


def _read_manifest(folder: Path, raw: bytes) -> None:
    (folder / "store/manifest.json").write_bytes(raw)
    store = TokenStore(folder / "store")
    for fault in find_faults(store.path):
        raise fault
    store_table(store).encode()
    for name in store.domains:
        assert (store.tokens(name, "train") < store.manifest.tokenizer.vocabulary_size).all()
    config = load_config(BaseConfig, folder / "base.json")
    base_order(store, config, [(0, dict.fromkeys(store.domains, 1 / len(store.domains)))])


def _read_recipe(folder: Path, raw: bytes) -> None:
    (folder / "recipe.json").write_bytes(raw)
    read_recipe(folder / "recipe.json")


# The programs' own checks, of everything that one rank can check by itself.


def _check_run(program: ModuleType) -> Callable[[Path, Any], None]:
    def read(folder: Path, raw: bytes) -> None:
        (folder / "run.json").write_bytes(raw)
        words = ["--config", str(folder / "run.json"), "--output", str(folder / "run")]
        words += ["--set", f"data.path={folder / 'store'}"] if b'"path": "store"' in raw else []
        program.check(read_run_arguments("", words, needs_mixture=program is train_base), Ranks(0, 2, 0))

    return read


# Run directories, as `doge-ds report` reads them.


def _read_report(name: str) -> Callable[[Path, Any], None]:
    """One file of a run is fuzzed, and put back."""

    def read(folder: Path, raw: bytes) -> None:
        file = folder / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(raw)
        try:
            runs = read_runs([folder / "proxy", folder / "base"])
            comparison = read_comparison(folder / "comparison.json") if (folder / "comparison.json").exists() else None
            render_page(runs, WRITTEN, comparison).encode()
        finally:
            file.unlink() if before is None else file.write_bytes(before)

    return read


def _read_summary(folder: Path, raw: bytes) -> None:
    """As `doge-ds compare` does when it is finished."""
    (folder / "summary.json").write_bytes(raw)
    write_comparison_page([folder / "summary.json"], folder / "report.html")
    for file in write_figures(folder / "summary.json", folder / "figures"):
        assert file.parent == folder / "figures"
        ElementTree.parse(file)


# What the kinds below are spoilt from.
VALID: Mapping[str, list[bytes]] = {
    "proxy configuration": [whole(PROXY)],
    "base configuration": [whole(BASE)],
    "proxy configuration, DoReMi": [whole(DOREMI_PROXY)],
    "configuration of a comparison": [whole(MIXTURES_COMPARED)],
    "DeepSpeed configuration": [whole(DEEPSPEED)],
    "mixture": [whole(MIXTURE_FILE)],
    "mixture, JSON of weights": [whole(DOREMI), whole(MIXTURE)],
    "mixture, YAML of weights": [whole(DOREMI), whole(MIXTURE)],
    "schedule": [whole(SCHEDULE)],
    "record of a run": [whole(FACTS)],
    "manifest": [whole(MANIFEST)],
    "proxy run": [whole(PROXY_RUN)],
    "base run": [whole(BASE_RUN)],
    "recipe": [whole(RECIPE)],
    "metrics of a proxy": [whole_lines(PROXY_LINES)],
    "metrics of a base": [whole_lines(BASE_LINES)],
    "results": [whole(RESULTS)],
    "facts of a run": [whole(BASE_FACTS)],
    "configuration of a run": [whole(RUN_CONFIG)],
    "selection": [whole(SELECTION)],
    "comparison": [whole(COMPARISON)],
    "comparison of mixtures": [whole(SUMMARY)],
}
KINDS: Mapping[str, Kind] = {
    "proxy configuration": Kind(files(PROXY), _read_config(ProxyConfig), write_configurations),
    "base configuration": Kind(files(BASE), _read_config(BaseConfig), write_configurations),
    "proxy configuration, DoReMi": Kind(files(DOREMI_PROXY), _read_config(ProxyConfig), write_configurations),
    "configuration of a comparison": Kind(files(MIXTURES_COMPARED), _read_mixtures_compared),
    "DeepSpeed configuration": Kind(files(DEEPSPEED), _read_deepspeed, write_configurations),
    "--set of a proxy": Kind(assignments(PROXY), _read_settings(ProxyConfig, "proxy.json"), write_configurations),
    "--set of a base": Kind(assignments(BASE), _read_settings(BaseConfig, "base.json"), write_configurations),
    "mixture": Kind(files(MIXTURE_FILE), _read_mixture),
    "mixture, JSON of weights": Kind(files(DOREMI) | files(MIXTURE), _read_any_mixture("given.json")),
    "mixture, YAML of weights": Kind(files(DOREMI) | files(MIXTURE), _read_any_mixture("given.yaml")),
    "schedule": Kind(files(SCHEDULE), _read_schedule, write_configurations),
    "record of a run": Kind(files(FACTS), _read_record, write_configurations),
    "manifest": Kind(files(MANIFEST), _read_manifest, make_store_and_configurations),
    "proxy run": Kind(files(PROXY_RUN), _check_run(train_proxy), make_small_store),
    "base run": Kind(files(BASE_RUN), _check_run(train_base), make_small_store),
    "recipe": Kind(files(RECIPE), _read_recipe),
    "metrics of a proxy": Kind(line_files(PROXY_LINES), _read_report("proxy/metrics.jsonl"), make_runs),
    "metrics of a base": Kind(line_files(BASE_LINES), _read_report("base/metrics.jsonl"), make_runs),
    "results": Kind(files(RESULTS), _read_report("base/results.json"), make_runs),
    "facts of a run": Kind(files(BASE_FACTS), _read_report("base/run.json"), make_runs),
    "configuration of a run": Kind(files(RUN_CONFIG), _read_report("proxy/config.json"), make_runs),
    "selection": Kind(files(SELECTION), _read_report("proxy/selection.json"), make_runs),
    "comparison": Kind(files(COMPARISON), _read_report("comparison.json"), make_runs),
    "comparison of mixtures": Kind(files(SUMMARY), _read_summary),
}


def fresh_folder(kind: Kind, folder: Path) -> Path:
    """The folder, empty but for what the kind needs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind.prepare(folder)
    return folder
