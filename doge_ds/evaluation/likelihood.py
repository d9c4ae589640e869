"""What windows of tokens cost a model, in nats, without ever holding the logits of a whole batch.

Logits are the largest tensor of a language model by far: 50,257 numbers a token against 384 to 4,096 of a hidden state.
So the model runs as a whole, but its output embedding gets one row of each window; what it would have got is kept and
goes through it in pieces that fit in a cache.
"""

import ctypes
import math
from contextlib import suppress
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from doge_ds.errors import ModelError

# Rows, and columns of the output embedding, at a time. With 4,096 rows of width 384, a vocabulary of 50,257 and 2 cores
# tiles of 1,024 columns take 0.95 s, of 4,096 1.11 s; rows in chunks of 512 with whole logits 1.42 s, of 64 2.2 s; all
# logits at once 1.73 s.
ROWS, TILE = 4096, 1024
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Tell glibc, where it is the allocator, to keep what tensors on the CPU have freed for the next ones.

    By default it gives memory back to the kernel and gets it again, page by page and zeroed: 7% of the time of a model
    with 6 layers of width 384 and a vocabulary of 8,000. For programs that go on doing the same until they end.
    """
    with suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)
        set_option(M_MMAP_THRESHOLD, 2**31 - 1)


class WindowLikelihood:
    """Negative log-likelihoods of one model.

    The model is called with input_ids, [batch, length], and returns an object with `logits`, [batch, length,
    vocabulary]; with `document_mask` also with position_ids, by which transformers' models know packed documents.

    Raises:
        ModelError: with `document_mask`, the model lets tokens see other documents than their own.
    """

    def __init__(self, model: torch.nn.Module, document_mask: bool, end_of_text_id: int) -> None:
        self._model: Any = model
        self._document_mask, self._end_of_text_id = document_mask, end_of_text_id
        find_head = getattr(self._model, "get_output_embeddings", None)
        head = find_head() if find_head else None
        self._head = head if type(head) is torch.nn.Linear else None
        if document_mask:
            self._check_document_mask()

    def nats(self, windows: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Of the last `predicted` tokens of each window, [batch, length]: their sum, float64, [batch]."""
        with torch.inference_mode():
            inputs, labels = windows[:, :-1], windows[:, 1:]
            length = inputs.shape[1]
            is_predicted = torch.arange(length, device=windows.device) >= length - predicted.unsqueeze(1)
            arguments = self._arguments(inputs)
            if self._head is not None and (hidden := self._hidden_states(arguments)) is not None:
                rows = zip(
                    torch.split(hidden[is_predicted], ROWS), torch.split(labels[is_predicted], ROWS), strict=True
                )
                nats = torch.cat([linear_nats(self._head, *part) for part in rows])
            else:
                nats = torch.cat(
                    [
                        cross_entropy(row[chosen].float(), label[chosen], reduction="none")
                        for row, label, chosen in zip(
                            self._model(**arguments).logits, labels, is_predicted, strict=True
                        )
                    ]
                )
            return torch.stack([part.sum() for part in torch.split(nats.double(), predicted.tolist())])

    def _arguments(self, inputs: torch.Tensor) -> dict[str, Any]:
        arguments = {"input_ids": inputs, "use_cache": False}
        if self._document_mask:
            positions = document_positions(inputs, self._end_of_text_id)
            if (positions[:, -1] != inputs.shape[1] - 1).any():  # else no document begins within these windows
                arguments["position_ids"] = positions
        return arguments

    def _hidden_states(self, arguments: dict[str, Any]) -> torch.Tensor | None:
        """What the output embedding gets, [batch, length, width]; None for a model whose logits are not its output.

        Some models scale or cap the logits after it, some do without it. What the model returns for the last row of
        each window is compared with what left the embedding: anything done in between shows. Such a model is asked
        for all its logits from then on.
        """
        hidden: list[torch.Tensor] = []
        left: list[torch.Tensor] = []

        def keep_the_last_row(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            if not given or given[0].shape[:-1] != arguments["input_ids"].shape:
                return None
            hidden.append(given[0])
            return (given[0][:, -1:], *given[1:])

        def keep_what_leaves(_: torch.nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            left.append(output)

        assert self._head is not None
        hooks = [
            self._head.register_forward_pre_hook(keep_the_last_row),
            self._head.register_forward_hook(keep_what_leaves),
        ]
        try:
            logits = self._model(**arguments).logits
        finally:
            for hook in hooks:
                hook.remove()
        if len(hidden) == len(left) == 1 and torch.equal(logits.float(), left[0].float()):
            return hidden[0]
        self._head = None
        return None

    def _check_document_mask(self) -> None:
        """Two windows whose first documents differ: the logits of the second document must not."""
        end = self._end_of_text_id
        a, b, c = [token for token in range(4) if token != end][:3]
        windows = torch.tensor([[end, a, b, a, end, c, a, b], [end, c, c, b, end, c, a, b]])
        try:
            with torch.inference_mode():
                arguments = self._arguments(windows.to(next(self._model.parameters()).device))
                one, other = self._model(**arguments).logits[:, 4:].float()
            kept_apart = torch.allclose(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)  # NaN is another fault
        except (TypeError, ValueError):  # it takes no position_ids
            kept_apart = False
        if not kept_apart:
            problem = f"{type(self._model).__name__} does not keep documents apart in a window"
            raise ModelError("--document_mask", problem, "measure this model without it")


def linear_nats(head: torch.nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each label, [rows], fp32, where `head` turns hidden states, [rows, width], into logits.

    The vocabulary goes by in tiles, whose exponentials are summed relative to the largest logit so far (Milakov and
    Gimelshein, arXiv 1805.02867): a tile is used up while it is in the cache, and its buffer is used again.
    """
    count, width = len(hidden), head.in_features
    buffer = hidden.new_empty(count * TILE)
    largest = torch.full((count, 1), -math.inf, device=hidden.device)
    total = torch.zeros_like(largest)
    of_label = torch.zeros_like(largest)
    for start in range(0, head.out_features, TILE):
        weight = head.weight[start : start + TILE]
        tile = buffer[: count * len(weight)].view(count, len(weight))
        if head.bias is None:
            torch.mm(hidden.view(count, width), weight.t(), out=tile)
        else:
            torch.addmm(head.bias[start : start + TILE], hidden.view(count, width), weight.t(), out=tile)
        logits = tile.float()  # of fp32 the same tensor
        place = labels.unsqueeze(1) - start
        is_inside = (place >= 0) & (place < len(weight))
        of_label = torch.where(is_inside, logits.gather(1, place.clamp(0, len(weight) - 1)), of_label)
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        total = total * (before - largest).exp_() + logits.sub_(largest).exp_().sum(1, keepdim=True)
    return (total.log() + largest - of_label).squeeze(1)


def document_positions(inputs: torch.Tensor, end_of_text_id: int) -> torch.Tensor:
    """How far each token is from the end-of-text token before its document, or from the window's first token.

    [batch, length] to the same. The end-of-text token itself is at 0: it is the context of the document's first token.
    """
    places = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    starts = torch.where(inputs == end_of_text_id, places, 0).cummax(dim=1).values
    return places - starts
