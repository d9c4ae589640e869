"""Held-out perplexity: every token of every domain predicted exactly once.

A domain's held-out documents are one stream. Windows of `sequence_length` tokens share one token of context: the first
token of a window is the last of the window before (end-of-text for the first), and the others are predicted. That is
what training does, so position `sequence_length` of a learned position embedding, which no training sequence predicts
from, is never used. Predictions of end-of-text count.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from doge_ds.errors import ModelError


@dataclass(frozen=True)
class HeldOutText:
    """The held-out part of one domain: token ids, [tokens], and bytes of the raw UTF-8 text they were made from."""

    tokens: np.ndarray
    bytes: int


@dataclass(frozen=True)
class DomainPerplexity:
    """What one domain's held-out text costs a model.

    Attributes:
        log_perplexity: mean negative log-likelihood of a token, nats.
        perplexity: its exponential; infinity where that is out of float64's range, above 709 nats.
        bits_per_byte: all of it in bits over the bytes of the raw text; comparable between tokenizers.
        tokens: that were predicted: all there are.
        bytes: of the raw text.
    """

    log_perplexity: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def measure_perplexity(
    model: torch.nn.Module,
    texts: Mapping[str, HeldOutText],
    end_of_text_id: int,
    sequence_length: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> dict[str, DomainPerplexity]:
    """Perplexity of each domain.

    Args:
        model: called with input_ids, [batch, length], returns an object with `logits`, [batch, length, vocabulary].
        texts: held-out text of each domain, at least one token and one byte each.
        end_of_text_id: context of a domain's first token.
        sequence_length: tokens of a window, its one token of context counted; at least 2.
        batch_size: windows at a time; the result does not depend on it.

    Raises:
        ModelError: a domain's likelihood is not finite.
    """
    model.eval()
    found = {}
    tokens = sum(len(text.tokens) for text in texts.values())
    is_watched = sys.stderr.isatty()
    interval = 1.0 if is_watched else 10.0  # seconds; a job's log keeps every line
    with tqdm(total=tokens, unit=" tokens", unit_scale=True, dynamic_ncols=True, mininterval=interval) as bar:
        for name, text in texts.items():
            bar.set_postfix_str(name, refresh=is_watched)
            nats = 0.0
            for batch in window_batches(text.tokens, end_of_text_id, sequence_length, batch_size):
                nats += negative_log_likelihood(model, batch.to(device))
                if not math.isfinite(nats):  # now, not after an hour of the domain's other batches
                    problem = f"gives a log-likelihood of {-nats}"
                    raise ModelError(f"the model on {name}", problem, "its weights are damaged: export or train again")
                bar.update(batch[:, 1:].numel())
            found[name] = _summary(nats, text)
    return found


def averages(domains: Mapping[str, DomainPerplexity]) -> dict[str, float]:
    """Over domains, each counted the same: the mean log-perplexity, the mean perplexity, and exp of the former.

    `geometric_perplexity` is what the paper calls average perplexity (arXiv 2310.15393).
    """
    mean_log = math.fsum(domain.log_perplexity for domain in domains.values()) / len(domains)
    return {
        "average_log_perplexity": mean_log,
        "average_perplexity": math.fsum(domain.perplexity for domain in domains.values()) / len(domains),
        "geometric_perplexity": _exponential(mean_log),
    }


def window_batches(
    tokens: np.ndarray, end_of_text_id: int, sequence_length: int, batch_size: int
) -> Iterator[torch.Tensor]:
    """Windows of one domain, [batch, sequence_length], int64, in order; the last may be shorter and comes alone.

    Without padding the likelihoods do not depend on how a model treats it.
    """
    stride = sequence_length - 1
    whole = len(tokens) // stride
    for begin in range(0, whole, batch_size):
        starts = range(begin * stride, min(begin + batch_size, whole) * stride, stride)
        yield torch.stack([_window(tokens, start, stride, end_of_text_id) for start in starts])
    if rest := len(tokens) - whole * stride:
        yield _window(tokens, whole * stride, rest, end_of_text_id).unsqueeze(0)


def negative_log_likelihood(model: torch.nn.Module, windows: torch.Tensor) -> float:
    """Nats that the model needs for all but the first token of each window, [batch, length], summed in fp64."""
    with torch.inference_mode():
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        labels = windows[:, 1:]
        # A window at a time: fp32 logits of a whole batch would be the largest tensor of all.
        losses = [
            torch.nn.functional.cross_entropy(row.float(), label, reduction="none").double().sum()
            for row, label in zip(logits, labels, strict=True)
        ]
        return float(torch.stack(losses).sum())


def _window(tokens: np.ndarray, start: int, count: int, end_of_text_id: int) -> torch.Tensor:
    """`count` tokens from `start` on, with the token before them in front, [count + 1], int64."""
    window = np.empty(count + 1, dtype=np.int64)
    window[0] = tokens[start - 1] if start else end_of_text_id
    window[1:] = tokens[start : start + count]
    return torch.from_numpy(window)


def _summary(nats: float, text: HeldOutText) -> DomainPerplexity:
    mean = nats / len(text.tokens)
    return DomainPerplexity(
        log_perplexity=mean,
        perplexity=_exponential(mean),
        bits_per_byte=nats / math.log(2) / text.bytes,
        tokens=len(text.tokens),
        bytes=text.bytes,
    )


def _exponential(nats: float) -> float:
    """exp(nats), or infinity: a model that never saw a language can cost more than math.exp takes."""
    return math.exp(nats) if nats < 709 else math.inf
