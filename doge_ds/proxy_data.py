"""What a proxy run reads: its domains, the batches of one rank, and the reference model where the method has one."""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from doge_ds.config import ProxyConfig
from doge_ds.config_sections import REFERENCE_METHODS
from doge_ds.data.batches import BatchSizes
from doge_ds.data.loader import ProxyLoader
from doge_ds.data.tokens import TokenStore, file_sha256
from doge_ds.errors import ConfigError, ModelError, nearest


def proxy_loader(
    config: ProxyConfig,
    store: TokenStore,
    sizes: BatchSizes,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> ProxyLoader:
    """One rank's batches of a proxy run, of so many sequences of each row.

    Raises ConfigError and StoreError as `choose_domains` and the loader do.
    """
    return ProxyLoader(
        store,
        *choose_domains(config, store),
        mix=config.target == "mix",
        sequences_per_domain=sizes,
        micro_batch_size=micro_batch_size,
        sequence_length=config.data.sequence_length,
        seed=config.training.seed,
        rank=rank,
        world_size=world_size,
        domains_per_step=config.doge.domains_per_step,
        update_every=config.doge.update_every,
        first_update=config.doge.selection.steps if config.doge.selection else 0,
    )


def choose_domains(config: ProxyConfig, store: TokenStore) -> tuple[list[str], list[str]]:
    """Domains to train on, and the targets where they are named.

    Raises:
        ConfigError: a train or target domain that the store lacks, none to train on, or fewer than a step shall have.
    """
    targets = config.target if isinstance(config.target, list) else []
    train = config.data.train_domains or [name for name in store.domains if name not in targets]
    for key, names in (("doge.target", targets), ("data.train_domains", train)):
        for name in names:
            if name not in store.domains:
                raise ConfigError(key, f"{name!r} is not in {store.path}", nearest(name, store.domains))
    if not train:
        raise ConfigError("data.train_domains", "every domain of the store is a target", "name the domains to train on")
    per_step = config.doge.domains_per_step or len(train)
    if per_step > len(train):
        raise ConfigError("doge.domains_per_step", f"is {per_step} of {len(train)} train domains", "leave it out")
    if per_step < len(train) and (both := sorted(set(train) & set(targets))):
        problem = f"names the train domain {both[0]!r}, which most steps would not have (doge.domains_per_step)"
        raise ConfigError("doge.target", problem, "take it out of data.train_domains, or leave domains_per_step out")
    return train, targets


def with_reference(config: ProxyConfig, given: str | None) -> ProxyConfig:
    """The configuration with the reference model that `--reference` names, or else its own; of a run its export.

    Raises:
        ConfigError: a reference, and a method that has none.
        ModelError: a run that has exported no model yet.
    """
    if not config.needs_reference:
        if given is None:
            return config
        problem = f"belongs to method {' or '.join(REFERENCE_METHODS)}, and this is {config.method}"
        raise ConfigError(f"--reference {given}", problem, f'leave it out, or set "method": "{REFERENCE_METHODS[0]}"')
    name = given or config.reference
    if name is not None and os.path.isfile(Path(name) / "run.json"):  # Path.is_file raises OSError for a long name
        if not (Path(name) / "hf").is_dir():
            remedy = "name a run of train_base.py, and wait for its end"
            raise ModelError(f"--reference {name}", "is a run that has exported no model", remedy)
        name = str(Path(name) / "hf")
    return config.model_copy(update={config.method: config.options.model_copy(update={"reference": name})})


def reference_facts(config: ProxyConfig) -> dict[str, Any]:
    """What tells the reference model from another, for run.json: a hash of its files, or its name on the hub."""
    return {} if config.reference is None else {"reference": model_hash(config.reference)}


def model_hash(name: str) -> str:
    """sha256 over the files of a Hugging Face folder that make the model, 64 hex digits; of the hub the name itself."""
    if not os.path.isdir(name):
        return name
    files = [file for file in sorted(Path(name).glob("*.safetensors*")) if file.is_file()]
    if (config := Path(name) / "config.json").is_file():
        files.insert(0, config)
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def sequences_read(loader: ProxyLoader, step: int, rows: Sequence[str], losses: torch.Tensor) -> str:
    """Which sequences, in their own order, a 0-based step read of the rows whose loss is no number, or of all rows."""
    before, after = loader.needs(step), loader.needs(step + 1)
    strange = [row for row, loss in zip(rows, losses.tolist(), strict=True) if not math.isfinite(loss)]
    return ", ".join(f"{row} {before[row]:,} to {after[row] - 1:,}" for row in strange or rows)
