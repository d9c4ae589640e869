"""What one rank of a run holds in memory, and what a checkpoint takes: counted, before anything is allocated.

DeepSpeed's own estimators (`estimate_zero2_model_states_mem_needs` and its twin for ZeRO-3) count model states of
16-bit training: weights, gradients, fp32 copies and Adam's moments. They leave out fp32 training, the precision of
accumulated gradients, buckets, the weights that ZeRO-3 gathers, and the optimizer's scratch memory. So these are
counted here one by one, as DeepSpeed 0.19 allocates them, and the estimators' figure is given beside them. Activations
are those of torch's fake tensors, which have shapes and no numbers: both passes of one micro-batch run on them.

Not counted: the interpreter and its libraries, a GPU's context, what an allocator cannot use, communication libraries.
"""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DtypeEnum
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs, model_to_params
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM

from doge_ds.config_sections import TrainingConfig
from doge_ds.training.model import BUILD_ERRORS, checkpoint_gradients, parameter_count, token_losses
from doge_ds.training.reference_model import excess_losses

FP32, FP64 = 4, 8  # bytes
ADAM_MOMENTS = 2


@dataclass(frozen=True)
class Rows:
    """A proxy's gradients: how many rows, bytes of a number (None: as gradients are accumulated), kept on the host?"""

    count: int
    number_bytes: int | None
    on_host: bool


@dataclass(frozen=True)
class RankShape:
    """All that decides what a rank holds.

    Attributes:
        model: transformers' configuration.
        deepspeed: as `complete_deepspeed_config` gives it.
        sequence_length: in tokens.
        world_size: ranks.
        micro_batch_size: sequences of one forward pass.
        accumulates: whether a gradient is the sum of several backward passes.
        rows: of a proxy.
        reference: transformers' configuration of DoReMi's reference model.
    """

    model: Any
    deepspeed: dict[str, Any]
    training: TrainingConfig
    sequence_length: int
    world_size: int
    micro_batch_size: int
    accumulates: bool
    rows: Rows | None = None
    reference: Any = None


@dataclass(frozen=True)
class MemoryItem:
    """Bytes of one kind: while gradients are computed, and in the optimizer's step; "device", "host" or "disk"."""

    name: str
    place: str
    backward: int
    step: int
    is_model_state: bool = False  # one that DeepSpeed's estimators count


@dataclass(frozen=True)
class RankMemory:
    """What a rank holds.

    Attributes:
        items: in the order in which they are told.
        activations_known: False where the model cannot run on fake tensors, so that activations are missing.
        deepspeed_estimate: bytes of model states on a device, by DeepSpeed's estimator.
    """

    items: list[MemoryItem]
    activations_known: bool
    deepspeed_estimate: int

    def total(self, place: str) -> int:
        """Bytes at the worse of both moments."""
        there = [item for item in self.items if item.place == place]
        return max(sum(item.backward for item in there), sum(item.step for item in there))

    @property
    def model_states(self) -> int:
        """Bytes that are model states, as DeepSpeed's estimators mean them, wherever they are."""
        return sum(max(item.backward, item.step) for item in self.items if item.is_model_state)


@dataclass(frozen=True)
class _Sizes:
    """Bytes of numbers and counts of them.

    Attributes:
        weight, gradient: bytes of a weight (and of communication), and of an accumulated gradient.
        parameters, shard, largest_layer, largest: numbers: in all, of a rank, of the layer and tensor with most.
    """

    weight: int
    gradient: int
    parameters: int
    shard: int
    largest_layer: int
    largest: int


def rank_memory(shape: RankShape) -> RankMemory:
    """Count it; the model is built without its weights."""
    sizes = _sizes(shape)
    zero = DeepSpeedZeroConfig(**shape.deepspeed["zero_optimization"])
    torch_adam = bool(shape.deepspeed["optimizer"]["params"].get("torch_adam"))
    is_cpu = runs_on_cpu(shape.deepspeed)
    items = (_zero2 if zero.stage == 2 else _zero3)(shape, sizes, zero, torch_adam, is_cpu)
    if shape.rows:
        size = shape.rows.count * (shape.rows.number_bytes or sizes.gradient) * sizes.shard
        items.append(MemoryItem("rows of domain gradients", "host" if shape.rows.on_host else "device", size, size))
    if shape.reference is not None:
        size = sizes.weight * parameter_count(shape.reference)
        items.append(MemoryItem("reference model", "device", size, size))
    activations = activation_bytes(shape, sizes.weight)
    # On the host the C library keeps what was freed in pieces below 32 MB.
    kept = activations if is_cpu else 0
    items.append(MemoryItem("activations and logits", "device", activations or 0, kept or 0))
    if is_cpu:
        items = [dataclasses.replace(item, place="host") for item in items]
    items = [item for item in items if item.backward or item.step]
    return RankMemory(items, activations is not None, _deepspeed_estimate(sizes, zero, shape.world_size))


def runs_on_cpu(deepspeed: dict[str, Any]) -> bool:
    """Whether this configuration trains on the CPU: torch's AdamW on a machine where DeepSpeed finds no device."""
    torch_adam = bool(deepspeed["optimizer"]["params"].get("torch_adam"))
    return torch_adam and get_accelerator().device_name() == "cpu"


def checkpoint_bytes(shape: RankShape) -> int:
    """One checkpoint on disk, files of all ranks: fp32 weights, Adam's moments, and under ZeRO-2 the model too."""
    sizes = _sizes(shape)
    states = (1 + ADAM_MOMENTS) * FP32 * sizes.parameters
    is_zero3 = shape.deepspeed["zero_optimization"]["stage"] == 3
    return states if is_zero3 else states + sizes.weight * sizes.parameters


def activation_bytes(shape: RankShape, weight_bytes: int) -> int | None:
    """Most bytes that one micro-batch's passes hold at a time, beside weights and accumulated gradients.

    What autograd keeps for the backward pass, logits and their fp32 copies, and temporary tensors of single operations.
    None where the model's code asks for numbers, which fake tensors do not have.
    """
    dtype = torch.float32 if weight_bytes == FP32 else torch.bfloat16  # fp16 is as large
    try:
        with FakeTensorMode(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_config(shape.model, dtype=dtype).train()
            if shape.training.gradient_checkpointing:
                checkpoint_gradients(model)
            tokens = torch.zeros(shape.micro_batch_size, shape.sequence_length, dtype=torch.int64)
            reference = None
            if shape.reference is not None:
                reference = AutoModelForCausalLM.from_config(shape.reference, dtype=dtype).eval()
            tracker = MemTracker()
            tracker.track_external(*filter(None, [model, reference]))
            resting = _largest_total(tracker, "current")
            for parameter in model.parameters():
                # DeepSpeed moves a gradient into its bucket as soon as it is there.
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
            with tracker:
                losses = token_losses(model, tokens)
                if reference is not None:
                    excess_losses(losses, reference, tokens)
                losses.mean().backward()  # type: ignore[no-untyped-call]
            return _largest_total(tracker, "peak") - resting
    except BUILD_ERRORS:
        return None


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _largest_total(tracker: MemTracker, moment: str) -> int:
    return max((found["Total"] for found in tracker.get_tracker_snapshot(moment).values()), default=0)


def _sizes(shape: RankShape) -> _Sizes:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _, largest_layer = model_to_params(model)
    weight = 2 if any((shape.deepspeed.get(key) or {}).get("enabled") for key in ("bf16", "fp16")) else FP32
    name = shape.deepspeed.get("data_types", {}).get("grad_accum_dtype")
    return _Sizes(
        weight=weight,
        gradient=DtypeEnum(name).value.itemsize if name else weight,
        parameters=parameters,
        shard=math.ceil(parameters / shape.world_size),
        largest_layer=largest_layer,
        largest=max(parameter.numel() for parameter in model.parameters()),
    )


def _zero2(
    shape: RankShape, sizes: _Sizes, zero: DeepSpeedZeroConfig, torch_adam: bool, is_cpu: bool
) -> list[MemoryItem]:
    """Weights whole, all else in shards. Gradients come as a list in the weights' precision, or in a buffer.

    A step flattens the list and makes it fp32 where it is not; all lists are views of one tensor, which is there
    until the last group's turn.
    """
    shard = sizes.shard
    if sizes.gradient == sizes.weight:
        gradients = sizes.weight * shard
        step, summed = gradients + FP32 * shard, gradients * (2 if shape.accumulates else 1)
        flattening = 2 * gradients + (FP32 * shard if sizes.weight < FP32 else 0) - step
    else:
        gradients = step = summed = sizes.gradient * shard
        flattening = 0
    norm = gradients + FP64 * min(sizes.largest, shard) - step  # DeepSpeed takes it in fp64, tensor by tensor
    scratch = max(flattening, norm, _adam_scratch(shard, torch_adam))
    buckets = _buckets(sizes, zero, 2 if zero.overlap_comm else 1, is_cpu)
    copied = _copied_bucket(sizes, zero) if shape.world_size > 1 else 0
    return [
        _states("weights", "device", sizes.weight * sizes.parameters),
        _states("optimizer (fp32 weights, moments)", "device", (1 + ADAM_MOMENTS) * FP32 * shard),
        MemoryItem("gradients", "device", summed, step, is_model_state=True),
        MemoryItem("optimizer's scratch", "device", 0, scratch),
        MemoryItem("gradient buckets", "device", buckets + copied, 0),
    ]


def _zero3(
    shape: RankShape, sizes: _Sizes, zero: DeepSpeedZeroConfig, torch_adam: bool, is_cpu: bool
) -> list[MemoryItem]:
    """All in shards; weights are gathered as they are needed. Buckets and the gradients' buffer are there throughout.

    A step flattens the gradients once more. fp32 training too has weights of the optimizer's own. A model is built in
    shards of single tensors, which are then joined: those below 32 MB the C library keeps on the host.
    """
    shard = sizes.shard
    weights_at, states_at = _place(zero.offload_param), _place(zero.offload_optimizer)
    is_offloaded = states_at != "device"
    work_at = "host" if is_offloaded else "device"
    kept = sizes.gradient * shard + (FP32 * shard if is_offloaded else 0)
    flattened = 0 if is_offloaded else FP32 * shard
    buckets = _buckets(sizes, zero, 1, is_cpu)
    pieces = sizes.weight * shard if is_cpu else 0
    return [
        _states("weights", weights_at, sizes.weight * shard),
        MemoryItem("weights' pieces, freed", weights_at, pieces, pieces),
        MemoryItem("gathered weights", "device", _gathered(shape, sizes, zero), 0),
        _states("optimizer (fp32 weights, moments)", states_at, (1 + ADAM_MOMENTS) * FP32 * shard),
        MemoryItem("gradients", work_at, kept, kept + flattened, is_model_state=True),
        MemoryItem("optimizer's scratch", work_at, 0, _adam_scratch(shard, torch_adam)),
        MemoryItem("gradient buckets", "device", buckets + _copied_bucket(sizes, zero), buckets),
    ]


def _states(name: str, place: str, size: int) -> MemoryItem:
    return MemoryItem(name, place, size, size, is_model_state=True)


def _place(offload: Any) -> str:
    """Where a section of the DeepSpeed configuration puts what it offloads."""
    device = "none" if offload is None else getattr(offload.device, "value", offload.device)
    return {"none": "device", "cpu": "host"}.get(device, "disk")


def _adam_scratch(shard: int, torch_adam: bool) -> int:
    """torch's AdamW computes a square root and a quotient as large as the shard; DeepSpeed's own keep none."""
    return 2 * FP32 * shard if torch_adam else 0


def _buckets(sizes: _Sizes, zero: DeepSpeedZeroConfig, count: int, is_cpu: bool) -> int:
    """A device's allocator takes them whole; of memory on the host only what is written to counts."""
    numbers = count * int(zero.reduce_bucket_size)
    return sizes.weight * (min(numbers, sizes.parameters) if is_cpu else numbers)


def _copied_bucket(sizes: _Sizes, zero: DeepSpeedZeroConfig) -> int:
    """Gradients in a bucket are put into the order of the ranks before they are reduced."""
    return sizes.weight * min(int(zero.reduce_bucket_size), sizes.parameters)


def _gathered(shape: RankShape, sizes: _Sizes, zero: DeepSpeedZeroConfig) -> int:
    """Weights that are whole when the forward pass ends: those used again within the reuse distance.

    A single rank uses its shard, which is whole, as it is.
    """
    if shape.world_size == 1 and zero.offload_param is None:
        return 0
    near = max(int(zero.max_reuse_distance) // 2, int(zero.prefetch_bucket_size) + sizes.largest_layer)
    return sizes.weight * min(sizes.parameters, near)


def _deepspeed_estimate(sizes: _Sizes, zero: DeepSpeedZeroConfig, world_size: int) -> int:
    """Bytes on a device."""
    if zero.stage == 2:
        _, device = estimate_zero2_model_states_mem_needs(sizes.parameters, world_size, cpu_offload=False)
        return int(device)
    offload = [_place(section) != "device" for section in (zero.offload_optimizer, zero.offload_param)]
    _, device, _ = estimate_zero3_model_states_mem_needs(
        sizes.parameters, sizes.largest_layer, world_size, cpu_offload=offload[0], cpu_offload_params=offload[1]
    )
    return int(device)
