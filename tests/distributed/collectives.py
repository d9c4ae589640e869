"""What a rank says to the others: every collective by name and size, whoever calls it and however it was imported."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# c10d: torch.distributed's operations, which DeepSpeed's backends end in; deepspeed: its own for shared memory.
NAMESPACES = ("c10d", "_c10d_functional", "deepspeed")


class Collective(NamedTuple):
    """One call: torch's name of the operation, elements of the tensors that it fills, and their bytes."""

    name: str
    numbers: int
    bytes: int


class CollectiveRecorder(TorchDispatchMode):
    """As a context: notes the collectives of this thread and of its backward passes, and lets them happen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace in NAMESPACES:
            name = str(function.overloadpacket).rpartition(".")[2].strip("_")
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)]
            numbers = sum(tensor.numel() for tensor in tensors)
            self.calls.append(Collective(name, numbers, sum(tensor.nbytes for tensor in tensors)))
        return function(*args, **(kwargs or {}))


def record_collectives(work: Callable[[], object]) -> list[Collective]:
    """The collectives of one piece of work, in their order."""
    with CollectiveRecorder() as recorder:
        work()
    return recorder.calls
