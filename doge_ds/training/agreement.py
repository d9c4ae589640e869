"""One rank's error, raised on all: one that raised alone would leave the others waiting for it."""

import deepspeed
import torch

from doge_ds.errors import DogeError


def raise_everywhere(error: DogeError | None, device: torch.device | str) -> None:
    """Raise the error of the lowest rank that has one on every rank (collective); nothing where none has.

    Args:
        error: this rank's, or None.
        device: where the process group's tensors live.
    """
    world_size = torch.distributed.get_world_size()
    lowest = torch.tensor([torch.distributed.get_rank() if error else world_size], device=device)
    deepspeed.comm.all_reduce(lowest, op=deepspeed.comm.ReduceOp.MIN)
    if int(lowest) < world_size:
        errors = [error]
        torch.distributed.broadcast_object_list(errors, src=int(lowest), device=torch.device(device))
        raise errors[0] or error or RuntimeError("an error was lost between ranks")
