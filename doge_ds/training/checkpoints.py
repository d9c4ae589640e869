"""A run's checkpoints: saved whole or not at all, and loaded by any number of ranks.

Domain weights and the state of the data ride in DeepSpeed's client state, in the same files as the model: they cannot
come apart. A save goes into a folder of another name; every rank waits until its files are on disk; only then rank 0
gives the folder its name, and writes that name into `latest`. Whenever a job is killed, `latest` names a whole one.

On the same number of ranks every bit is as it was. On another number, rank 0 converts the checkpoint once, through
DeepSpeed's universal checkpoint, and sums over ranks may round otherwise.
"""

import shutil
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint.constants import (
    UNIVERSAL_CHECKPOINT_INFO,
    UNIVERSAL_CHECKPOINT_VERSION_KEY,
    UNIVERSAL_CHECKPOINT_VERSION_VALUE,
)

from doge_ds.config_sections import TrainingConfig
from doge_ds.errors import RunError, SaveError
from doge_ds.training.agreement import raise_everywhere
from doge_ds.training.checkpoint_files import (
    Checkpoint,
    choose_checkpoint,
    make_whole,
    prune,
    read_checkpoint,
    refuse_what_others_may_have_written,
    set_aside,
    step_folder,
    temporary,
)
from doge_ds.training.checkpoint_writer import CheckpointWriter
from doge_ds.training.universal import converted, forget_conversion, loads_universal

# How long a rank waits for a file system to show what rank 0 sees; NFS remembers what was not there for a minute.
SECONDS_TO_APPEAR = 90.0


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, training: TrainingConfig) -> None:
        """Args: RUN/checkpoints; how often to save, how many to keep, what to do where a save fails."""
        self.directory = directory
        self._training = training

    def is_due(self, step: int) -> bool:
        """Whether the run saves after this 0-based step."""
        return (step + 1) % self._training.checkpoint_every == 0 or step + 1 == self._training.steps

    @property
    def steps_done(self) -> int:
        """Steps that the checkpoint to continue from has behind it, by its name; 0 without one."""
        found, _ = choose_checkpoint(self.directory)
        return found.step if found else 0

    def save(
        self, engine: deepspeed.DeepSpeedEngine, step: int, state: dict[str, Any], problem: str | None = None
    ) -> None:
        """Save after `step` steps (collective), then delete all but the newest `keep_checkpoints`.

        Args:
            engine: after `engine.step()`.
            step: steps done.
            state: what is saved beside the model.
            problem: what speaks against a checkpoint on this rank; it is then not written.

        Raises:
            SaveError: on every rank, where one of them could not write. The checkpoint before is the latest still.
        """
        folder = step_folder(self.directory, step)
        written = temporary(folder)
        writer = _writer_of(engine)
        if engine.global_rank == 0:
            shutil.rmtree(written, ignore_errors=True)  # of a save that was cut short
        self._raise_where_failed(engine, step, problem)
        client_state = {
            "doge_ds": {"step": step, **state},
            # DeepSpeed's universal converter wants this from the first checkpoint of a ZeRO-2 run on.
            UNIVERSAL_CHECKPOINT_INFO: {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE},
        }
        engine.save_checkpoint(str(self.directory), tag=written.name, client_state=client_state, save_latest=False)
        self._raise_where_failed(engine, step, writer.take_error())
        failure = None
        if engine.global_rank == 0:
            try:
                make_whole(written, torch.distributed.get_world_size())
            except OSError as error:
                failure = f"{error.filename or folder}: {error.strerror}"
        self._raise_where_failed(engine, step, failure)
        if engine.global_rank == 0:
            try:
                prune(self.directory, folder, self._training.keep_checkpoints)
            except OSError as error:
                text = f"warning: an old checkpoint could not be deleted ({error.filename}: {error.strerror})"
                print(text, file=sys.stderr, flush=True)

    def _raise_where_failed(self, engine: deepspeed.DeepSpeedEngine, step: int, failure: str | None) -> None:
        """Raise SaveError on all ranks where one of them has a failure (collective); that of the lowest is told."""
        error = None
        if failure is not None:
            problem = f"the checkpoint of step {step} could not be written ({failure})"
            error = SaveError(str(self.directory), problem, f"make room or mend it; {self.describe()}")
        try:
            raise_everywhere(error, engine.device)
        except SaveError:
            if engine.global_rank == 0:
                shutil.rmtree(temporary(step_folder(self.directory, step)), ignore_errors=True)
            deepspeed.comm.barrier()
            raise

    def describe(self) -> str:
        """The last good checkpoint, in words."""
        try:
            found, _ = choose_checkpoint(self.directory)
        except RunError:
            return "there is no checkpoint that is whole"
        return f"the last good checkpoint is {found.folder}" if found else "there is no checkpoint before it"

    def load(self, engine: deepspeed.DeepSpeedEngine) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into the engine (collective); its state with "step", or None without one.

        A damaged one is set aside, with a line that says so, and the one before is taken.

        Raises:
            RunError: on all ranks: there are checkpoints, but none is whole; or others may have written what stands
                there; or a rank does not see it.
        """
        while (chosen := self._choose(engine)) is not None:
            if self._is_undamaged(engine, chosen):
                return self._load(engine, chosen)
        return None

    def _choose(self, engine: deepspeed.DeepSpeedEngine) -> Checkpoint | None:
        """Rank 0's choice (collective): on a network file system each rank may see other folders for a while."""
        chosen, error = None, None
        if engine.global_rank == 0:
            try:
                chosen, passed_over = choose_checkpoint(self.directory)
                for problem in passed_over:
                    print(f"warning: {problem}", file=sys.stderr, flush=True)
            except RunError as found:
                error = found
        raise_everywhere(error, engine.device)
        choice = [chosen]
        torch.distributed.broadcast_object_list(choice, src=0, device=engine.device)
        if (chosen := choice[0]) is not None:
            raise_everywhere(_what_is_wrong_here(chosen), engine.device)
        return chosen

    def _is_undamaged(self, engine: deepspeed.DeepSpeedEngine, chosen: Checkpoint) -> bool:
        """Whether all files have what was written (collective); each rank reads its share of them. Else set aside."""
        damage, error = None, None
        try:
            damage = chosen.find_damage(engine.global_rank, torch.distributed.get_world_size())
        except RunError as found:
            error = found
        raise_everywhere(error, engine.device)
        is_damaged = torch.tensor([damage is not None], dtype=torch.int32, device=engine.device)
        deepspeed.comm.all_reduce(is_damaged)
        if not int(is_damaged):
            return True
        if damage is not None:
            print(f"warning: {chosen.folder} is not as it was written: {damage}", file=sys.stderr, flush=True)
        deepspeed.comm.barrier()
        if engine.global_rank == 0:
            print(f"warning: set aside as {set_aside(chosen.folder)}", file=sys.stderr, flush=True)
        deepspeed.comm.barrier()
        return False

    def _load(self, engine: deepspeed.DeepSpeedEngine, chosen: Checkpoint) -> dict[str, Any]:
        is_elsewhere = chosen.ranks != torch.distributed.get_world_size()
        folder = converted(chosen, engine.global_rank) if is_elsewhere else chosen.folder
        _writer_of(engine)
        with loads_universal(engine) if is_elsewhere else nullcontext():
            path, client_state = engine.load_checkpoint(str(self.directory), tag=folder.name)
        if path is None:
            raise RunError(str(folder), "cannot be loaded", f"name an older one in {self.directory / 'latest'}")
        if is_elsewhere:
            deepspeed.comm.barrier()
            if engine.global_rank == 0 and not self._training.keep_universal:
                forget_conversion(chosen)
        state: dict[str, Any] = client_state["doge_ds"]
        if state["step"] != chosen.step:
            raise RunError(str(folder), f"is of step {state['step']}", "do not rename checkpoints")
        return state


def _writer_of(engine: deepspeed.DeepSpeedEngine) -> CheckpointWriter:
    """Ours, put in the place of DeepSpeed's own at the first use."""
    if not isinstance(engine.checkpoint_engine, CheckpointWriter):
        engine.checkpoint_engine = CheckpointWriter()
        # DeepSpeed copies scripts into the run, which would raise on rank 0 alone on a full disk; `doge-ds export` does
        # what they do.
        engine._copy_recovery_script = lambda save_path: None
    writer: CheckpointWriter = engine.checkpoint_engine
    return writer


def _what_is_wrong_here(chosen: Checkpoint) -> RunError | None:
    """Why this rank cannot read what rank 0 chose; it waits for a slow file system to show it."""
    until = time.monotonic() + SECONDS_TO_APPEAR
    while isinstance(found := read_checkpoint(chosen.folder), str):
        if time.monotonic() > until:
            where = f"{chosen.folder} on {socket.gethostname()}"
            return RunError(where, f"{found}, while rank 0 sees all of it", "all nodes must see the run directory")
        time.sleep(1.0)
    try:
        refuse_what_others_may_have_written(chosen.folder.parents[1], chosen.folder)
    except RunError as error:
        return error
    return None
