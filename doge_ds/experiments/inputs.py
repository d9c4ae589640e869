"""What stages read, and what of it is refused before any of them runs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from doge_ds.config import BaseConfig, ProxyConfig, RunConfig
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, DogeError, StoreError
from doge_ds.experiments.comparison_config import EvaluationConfig
from doge_ds.mixture_schedule import chosen_schedule
from doge_ds.proxy_data import model_hash, with_reference


def weights_by_step(config: BaseConfig, store: TokenStore, mixture: str, path: Path) -> list[Any]:
    """What a base trains on, from which step on."""
    domains = config.data.train_domains or store.domains
    tokens = {name: store.record(name, "train").tokens for name in domains}
    stages = chosen_schedule(config, mixture, tokens, path)
    return [[stage.from_step, stage.mixture.domains] for stage in stages]


def model_facts(config: RunConfig) -> dict[str, Any]:
    """What tells models that a run reads from others in the same place: hashes of their files, where there are any."""
    found = {}
    if isinstance(config, ProxyConfig) and config.reference is not None:
        found["reference"] = _model_hash(str(with_reference(config, None).reference))
    if isinstance(name := config.model.get("pretrained"), str):
        found["pretrained"] = _model_hash(name)
    return found


def _model_hash(name: str) -> str:
    """As `model_hash`, read once: a comparison asks for each mixture and seed, and models are gigabytes."""
    if not os.path.isdir(name):
        return model_hash(name)
    stats = {file.name: file.stat() for file in sorted(Path(name).glob("*")) if file.is_file()}
    return _hash_of_unchanged(name, tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()))


@lru_cache(maxsize=64)
def _hash_of_unchanged(name: str, files: tuple[tuple[str, int, int], ...]) -> str:
    return model_hash(name)


@lru_cache(maxsize=64)
def open_store(path: str) -> TokenStore:
    return TokenStore(path)


def held_out_domains(store: TokenStore, wanted: Sequence[str] | None) -> list[str]:
    """Domains that eval/run.py measures. Raises StoreError where a named one, or every one, has no held-out text."""
    records = {name: store.record(name, "valid") for name in wanted or store.domains}
    found = [name for name, record in records.items() if record.tokens and record.bytes]
    if missing := [name for name in records if name not in found and (wanted or not found)]:
        problem = f"{missing[0]!r} has no held-out tokens"
        raise StoreError(str(store.path), problem, "name other evaluation.domains, or prepare it with a held-out share")
    return found


def refuse_another_tokenizer(trained_on: TokenStore, measured_on: TokenStore) -> None:
    """Raises ConfigError where eval/run.py would refuse the model."""
    if trained_on.manifest.tokenizer.sha256 != measured_on.manifest.tokenizer.sha256:
        problem = f"has another tokenizer than {trained_on.path}, which the base is trained on"
        raise ConfigError(f"evaluation.data {measured_on.path}", problem, "prepare it with that one")


def task_names(wanted: EvaluationConfig) -> list[str]:
    return [*([wanted.suite] if wanted.suite else []), *wanted.tasks]


@contextmanager
def saying(where: str) -> Iterator[None]:
    """Errors within say first what they are about."""
    try:
        yield
    except DogeError as error:
        inner, problem, remedy = error.args
        raise type(error)(f"{where}: {inner}", problem, remedy) from None
