"""How DeepSpeed writes a checkpoint's files here: each is on disk when it is done, and a failure waits to be told.

DeepSpeed's ranks meet several times while they save. One that raised an error between two meetings would leave the
others waiting, so an error is kept until all ranks are through, and then all of them hear of it.
"""

import os
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from doge_ds.errors import first_line


class CheckpointWriter(TorchCheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's writer of torch files, with fsync, and with errors kept for later."""

    def __init__(self, config_params: Any = None) -> None:
        super().__init__(config_params)
        self._error: str | None = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder, or keep the error."""
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._keep(path, error)

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file and wait until it is on disk, or keep the error."""
        try:
            with open(path, "wb") as stream:
                torch.save(state_dict, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
            self._keep(path, error)

    def take_error(self) -> str | None:
        """The first error since the last call, in words."""
        error, self._error = self._error, None
        return error

    def _keep(self, path: str, error: BaseException) -> None:
        if self._error is None:
            cause = _cause(error)
            self._error = f"{path}: {cause.strerror if isinstance(cause, OSError) else first_line(Exception(cause))}"


def _cause(error: BaseException) -> BaseException:
    """The error of the file system behind one of torch's, where there is one."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return found
        found = found.__cause__ or found.__context__
    return error
