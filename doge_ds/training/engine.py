"""Model and configuration to a DeepSpeed engine, and the engine's checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint.constants import (
    UNIVERSAL_CHECKPOINT_INFO,
    UNIVERSAL_CHECKPOINT_VERSION_KEY,
    UNIVERSAL_CHECKPOINT_VERSION_VALUE,
)
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from doge_ds.config import TrainingConfig
from doge_ds.errors import ConfigError, RunError


def cut_into_micro_batches(key: str, sequences: int, micro_batch_size: int | None, world_size: int) -> tuple[int, int]:
    """How a step's sequences are cut: (micro-batch size, micro-batches on each rank).

    Args:
        key: the run configuration's key of `sequences`, for the message.
        sequences: of one step, over all ranks.
        micro_batch_size: None for all that a rank gets.

    Raises:
        ConfigError: the ranks and micro-batches do not divide the sequences; the message has the values that would do.
    """
    unit = world_size * (micro_batch_size or 1)
    if sequences % unit == 0:
        size = micro_batch_size or sequences // world_size
        return size, sequences // (world_size * size)
    cut = f"{world_size} ranks" + (f" x micro-batches of {micro_batch_size}" if micro_batch_size else "")
    below, above = sequences // unit * unit, (sequences // unit + 1) * unit
    would_do = f"{below} or {above}" if below else f"{above}"
    raise ConfigError(f"training.{key}", f"{sequences} cannot be divided by {cut}", f"{would_do} would do")


def start_engine(
    model: torch.nn.Module, deepspeed_config: dict[str, Any], training: TrainingConfig
) -> deepspeed.DeepSpeedEngine:
    """The engine, with AdamW in two parameter groups and transformers' schedule cosine_with_min_lr.

    Raises:
        ConfigError: the model cannot be compiled here.
    """
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, training.weight_decay, training.decay_embeddings),
        config=deepspeed_config,
        lr_scheduler=lambda optimizer: get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, training.warmup_steps, training.steps, min_lr=training.min_learning_rate
        ),
    )
    if training.compile:
        try:
            engine.compile()
        except RuntimeError as error:  # this torch cannot, on this Python or system
            raise ConfigError("training.compile", f"cannot be used here ({error})", "turn it off") from None
    return engine


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Matrices decay, and embeddings where that is wanted; norms and biases, which have one dimension, do not.

    An output layer that is tied to the embeddings is one tensor with them and goes with them.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Under ZeRO-3 the parameter itself is an empty shell; DeepSpeed keeps its shape beside it.
            is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
            decays = is_matrix and (decay_embeddings or id(parameter) not in embeddings)
            (decayed if decays else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Checkpoints:
    """DeepSpeed's checkpoints of one run, and the newest few of them.

    Domain weights and the state of the data ride in the client state, in the same files as the model: they cannot come
    apart. `latest` is written after all ranks have written theirs, so a save that was cut short is never loaded.
    """

    def __init__(self, directory: Path, training: TrainingConfig) -> None:
        self.directory = directory
        self._training = training

    def is_due(self, step: int) -> bool:
        """Whether the run saves after this 0-based step."""
        return (step + 1) % self._training.checkpoint_every == 0 or step + 1 == self._training.steps

    def save(self, engine: deepspeed.DeepSpeedEngine, step: int, state: dict[str, Any]) -> None:
        """Save after `step` steps (collective), then delete all but the newest `keep_checkpoints`."""
        tag = f"step{step:08d}"
        client_state = {
            "doge_ds": {"step": step, **state},
            # DeepSpeed's universal converter wants this from the first checkpoint of a ZeRO-2 run on.
            UNIVERSAL_CHECKPOINT_INFO: {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE},
        }
        # DeepSpeed would write `latest` when rank 0 is done, while others may still be writing.
        engine.save_checkpoint(str(self.directory), tag=tag, client_state=client_state, save_latest=False)
        deepspeed.comm.barrier()
        if engine.global_rank == 0:
            temporary = self.directory / "latest.tmp"
            temporary.write_text(tag)
            temporary.replace(self.directory / "latest")
            self._prune(tag)

    def _prune(self, newest: str) -> None:
        """Delete old checkpoints, and later ones, which a killed run began and never finished."""
        folders = sorted(self.directory.glob("step*"))
        whole = [folder for folder in folders if folder.name <= newest]
        for folder in folders:
            if folder not in whole[-self._training.keep_checkpoints :]:
                shutil.rmtree(folder)

    def load(self, engine: deepspeed.DeepSpeedEngine) -> dict[str, Any] | None:
        """Load the latest checkpoint into the engine (collective); its state with "step", or None without one.

        Raises:
            RunError: there are checkpoints, but the latest cannot be loaded.
        """
        if self.latest is None:
            return None
        if not self.latest.is_dir():
            remedy = "write the name of another folder beside it into latest, or name another --output"
            raise RunError(str(self.directory / "latest"), f"names {self.latest.name!r}, which is not there", remedy)
        path, client_state = engine.load_checkpoint(str(self.directory), tag=self.latest.name)
        if path is None:
            remedy = f"write the name of an older folder into {self.directory}/latest"
            raise RunError(str(self.latest), "cannot be loaded", remedy)
        state: dict[str, Any] = client_state["doge_ds"]
        return state

    @property
    def steps_done(self) -> int:
        """Steps that the latest checkpoint has behind it, by its name; 0 without one. RunError: its name has none."""
        if self.latest is None:
            return 0
        digits = self.latest.name.removeprefix("step")
        if not digits.isdecimal():
            remedy = "write the name of a folder that begins with step into it"
            raise RunError(str(self.directory / "latest"), f"names {self.latest.name!r}, which says no step", remedy)
        return int(digits)

    @property
    def latest(self) -> Path | None:
        """Folder of the latest whole checkpoint."""
        pointer = self.directory / "latest"
        return self.directory / (pointer.read_text().strip() or "nothing") if pointer.is_file() else None
