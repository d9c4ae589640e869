"""Held-out perplexity: every token of every domain predicted exactly once, on any number of ranks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from doge_ds.errors import ModelError
from doge_ds.evaluation.intervals import log_perplexity, log_perplexity_interval
from doge_ds.evaluation.likelihood import WindowLikelihood
from doge_ds.evaluation.windows import DomainLosses, HeldOutText, WindowOptions, Windows

__all__ = [
    "DomainLosses",
    "DomainPerplexity",
    "HeldOutText",
    "WindowOptions",
    "averages",
    "measure_domain",
    "summary",
]


@dataclass(frozen=True)
class DomainPerplexity:
    """What one domain's held-out text costs a model.

    Attributes:
        log_perplexity: mean negative log-likelihood of a token, nats.
        perplexity: its exponential; infinity where that is out of float64's range, above 709 nats.
        bits_per_byte: all of it in bits over the bytes of the raw text; comparable between tokenizers.
        tokens: that were predicted: all there are.
        bytes: of the raw text.
        interval: 95% interval of the log-perplexity, low and high, by a bootstrap over windows.
    """

    log_perplexity: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    interval: tuple[float, float]


def measure_domain(
    model: torch.nn.Module,
    text: HeldOutText,
    end_of_text_id: int,
    options: WindowOptions,
    batch_size: int,
    device: torch.device | str = "cpu",
    ranks: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] | None = None,
    name: str = "the held-out text",
) -> DomainLosses:
    """What each window of one domain costs the model, complete and the same on every rank.

    Args:
        model: on `device`; called with input_ids, [batch, length], returns an object with `logits`, [batch, length,
            vocabulary]. It is left in evaluation mode.
        text: at least one token.
        end_of_text_id: context of the text's first token.
        batch_size: windows at a time; the result does not depend on it.
        ranks: this rank and how many there are. Each measures its share of the windows, then they are gathered over
            torch.distributed's default group, so all ranks must call this with the same text and options.
        progress: called after each batch with the tokens that this rank has predicted in it.
        name: of the domain, for the message.

    Raises:
        ModelError: a likelihood is not finite; on every rank.
    """
    model.eval()
    windows = Windows(text.tokens, end_of_text_id, options)
    likelihood = WindowLikelihood(model, options.document_mask, end_of_text_id)
    rank, world_size = ranks
    begin, end = (len(windows) * place // world_size for place in (rank, rank + 1))
    nats = np.zeros(len(windows))
    for batch in windows.batches(batch_size, begin, end):
        found = likelihood.nats(batch.tokens.to(device), batch.predicted.to(device)).cpu().numpy()
        nats[batch.first : batch.first + len(found)] = found
        if not np.isfinite(found).all():
            break  # now, not after an hour of the domain's other batches
        if progress is not None:
            progress(int(batch.predicted.sum()))
    if world_size > 1:
        shared = torch.from_numpy(nats).to(device)
        torch.distributed.all_reduce(shared)
        nats = shared.cpu().numpy()
    if not np.isfinite(total := float(nats.sum())):
        problem = f"gives a log-likelihood of {-total}"
        raise ModelError(f"the model on {name}", problem, "its weights are damaged: export or train again")
    return DomainLosses(nats, windows.predicted)


def summary(losses: DomainLosses, text: HeldOutText, seed: int) -> DomainPerplexity:
    """Perplexity of a domain from its windows; `seed` is the bootstrap's. The text has at least one byte."""
    mean = log_perplexity(losses)
    return DomainPerplexity(
        log_perplexity=mean,
        perplexity=_exponential(mean),
        bits_per_byte=math.fsum(losses.nats) / math.log(2) / text.bytes,
        tokens=int(losses.tokens.sum()),
        bytes=text.bytes,
        interval=log_perplexity_interval(losses, seed),
    )


def averages(domains: Mapping[str, DomainPerplexity]) -> dict[str, float | str]:
    """Over domains, each counted the same: the mean log-perplexity, the mean perplexity, and exp of the former.

    `geometric_perplexity` is what the paper calls average perplexity (arXiv 2310.15393). With the worst domain and its
    log-perplexity.
    """
    mean_log = math.fsum(domain.log_perplexity for domain in domains.values()) / len(domains)
    worst = max(domains, key=lambda name: domains[name].log_perplexity)
    return {
        "average_log_perplexity": mean_log,
        "average_perplexity": math.fsum(domain.perplexity for domain in domains.values()) / len(domains),
        "geometric_perplexity": _exponential(mean_log),
        "worst_domain": worst,
        "worst_log_perplexity": domains[worst].log_perplexity,
    }


def _exponential(nats: float) -> float:
    """exp(nats), or infinity: a model that never saw a language can cost more than math.exp takes."""
    return math.exp(nats) if nats < 709 else math.inf
