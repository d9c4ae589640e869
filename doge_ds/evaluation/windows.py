"""Which windows a held-out text is measured in, so that every token of it is predicted exactly once.

A domain's held-out documents are one stream. A window is `sequence_length` tokens of it, of which all but the last are
fed to the model. By default windows share one token of context: the first token of a window is the last of the window
before (end-of-text for the first), and the others are predicted. That is what training does, so position
`sequence_length` of a learned position embedding, which no training sequence predicts from, is never used. With a
`stride`, windows overlap by more. Predictions of end-of-text count.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from doge_ds.errors import ConfigError


@dataclass(frozen=True)
class HeldOutText:
    """The held-out part of one domain: token ids, [tokens], and bytes of the raw UTF-8 text they were made from."""

    tokens: np.ndarray
    bytes: int


@dataclass(frozen=True)
class WindowOptions:
    """How a text is cut, and what a token sees of its window.

    Attributes:
        sequence_length: tokens of a window, its first token of context counted; at least 2.
        stride: new tokens that a window predicts, at most and by default `sequence_length - 1`. The first window
            predicts all of its own; each token of the others has at least `sequence_length - stride` tokens before it.
        document_mask: a token sees only its own document, as in training on packed documents with masking. A
            document's segment begins with the end-of-text token before it, and positions count from there; a document
            that began before the window is cut at the window's first token and counts from that.

    Raises:
        ConfigError: a length or a stride with which no token could be predicted.
    """

    sequence_length: int
    stride: int | None = None
    document_mask: bool = False

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            problem = f"{self.sequence_length} leaves no token to predict"
            raise ConfigError("--sequence_length", problem, "give at least 2")
        if self.stride is not None and not 1 <= self.stride < self.sequence_length:
            problem = f"{self.stride} does not fit windows of {self.sequence_length} tokens"
            raise ConfigError("--stride", problem, f"give 1 to {self.sequence_length - 1}")

    @property
    def new_tokens(self) -> int:
        """Tokens that a window predicts, but for the first and the last."""
        return self.stride or self.sequence_length - 1


@dataclass(frozen=True, eq=False)
class DomainLosses:
    """What each window of one domain costs a model.

    Attributes:
        nats: negative log-likelihood of all that the window predicts, float64, [windows].
        tokens: how many these are, int64, [windows].
    """

    nats: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class WindowBatch:
    """Neighbouring windows of one length.

    Attributes:
        first: the number of the first of them.
        tokens: int64, [batch, length].
        predicted: how many tokens at the end of each are predicted, int64, [batch].
    """

    first: int
    tokens: torch.Tensor
    predicted: torch.Tensor


class Windows:
    """The windows of one text.

    Attributes:
        predicted: tokens that each window predicts, int64, [windows]; they are the text's next tokens.
    """

    def __init__(self, tokens: np.ndarray, end_of_text_id: int, options: WindowOptions) -> None:
        """Args: the stream, [tokens], at least one; the context of its first token; how it is cut."""
        self._tokens, self._end_of_text_id = tokens, end_of_text_id
        self._context = options.sequence_length - options.new_tokens
        first = min(len(tokens), options.sequence_length - 1)
        whole, rest = divmod(len(tokens) - first, options.new_tokens)
        self.predicted = np.array([first] + [options.new_tokens] * whole + [rest] * (rest > 0), dtype=np.int64)
        self._ends = np.cumsum(self.predicted)

    def __len__(self) -> int:
        return len(self.predicted)

    def batches(self, batch_size: int, begin: int = 0, end: int | None = None) -> Iterator[WindowBatch]:
        """Windows `begin` to `end`, in order, up to `batch_size` at a time.

        The last window of a text may be shorter and comes alone: without padding the likelihoods do not depend on how
        a model treats it.
        """
        end = len(self) if end is None else end
        while begin < end:
            windows = [self._window(number) for number in range(begin, min(begin + batch_size, end))]
            count = sum(len(window) == len(windows[0]) for window in windows)
            yield WindowBatch(
                begin,
                torch.from_numpy(np.stack(windows[:count])),
                torch.from_numpy(self.predicted[begin : begin + count]),
            )
            begin += count

    def _window(self, number: int) -> np.ndarray:
        """int64, [length]: what it predicts with its context in front."""
        end = int(self._ends[number])
        if number == 0:
            return np.concatenate([[self._end_of_text_id], self._tokens[:end]]).astype(np.int64)
        return self._tokens[end - int(self.predicted[number]) - self._context : end].astype(np.int64)
