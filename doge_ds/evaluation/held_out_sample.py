"""A fixed sample of every domain's held-out windows, measured now and then while a model is trained.

The same windows at every evaluation and on any number of ranks: differences between two steps come from the model. No
random number is drawn and no gradient touched, so training goes on as if nothing had been measured.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from doge_ds.evaluation.windows import WindowOptions, Windows

# Labels that cross_entropy leaves out: its own default.
IGNORED = -100
KEY = "held_out_log_perplexity"


class HeldOutSample:
    """This rank's share of the sample, as batches of one shape.

    Attributes:
        domains: that are measured, in the order given.
    """

    def __init__(
        self,
        texts: Mapping[str, np.ndarray],
        end_of_text_id: int,
        sequence_length: int,
        windows_per_domain: int,
        batch_size: int,
        ranks: tuple[int, int] = (0, 1),
    ) -> None:
        """Choose the windows and read this rank's.

        Args:
            texts: held-out tokens of each domain, [tokens], at least one.
            end_of_text_id: context of a text's first token.
            sequence_length: tokens of a window; its first is context only.
            windows_per_domain: at most; they lie evenly over the text.
            batch_size: windows of one forward pass on one rank.
            ranks: this rank and how many there are.
        """
        self.domains = list(texts)
        options = WindowOptions(sequence_length)
        cut = [Windows(text, end_of_text_id, options) for text in texts.values()]
        chosen = [evenly(len(windows), windows_per_domain) for windows in cut]
        self._tokens = [int(windows.predicted[numbers].sum()) for windows, numbers in zip(cut, chosen, strict=True)]
        sample = [(domain, int(number)) for domain, numbers in enumerate(chosen) for number in numbers]
        rank, world_size = ranks
        # ZeRO-3 gathers parameters collectively: every rank makes the same number of forward passes, with windows that
        # count nothing where there are no more.
        count = math.ceil(len(sample) / (world_size * batch_size)) * batch_size
        inputs = torch.full((count, sequence_length - 1), end_of_text_id)
        labels = torch.full((count, sequence_length - 1), IGNORED)
        domains = torch.zeros(count, dtype=torch.int64)
        for place, (domain, number) in enumerate(sample[rank::world_size]):
            # Only a domain's last window is shorter. What is put behind it no earlier token can see.
            window = next(cut[domain].batches(1, number, number + 1)).tokens[0]
            inputs[place, : len(window) - 1] = window[:-1]
            labels[place, : len(window) - 1] = window[1:]
            domains[place] = domain
        parts = (part.view(count // batch_size, batch_size, *part.shape[1:]) for part in (inputs, labels, domains))
        self._batches = list(zip(*parts, strict=True))

    def measure(self, model: Any, device: torch.device | str = "cpu") -> dict[str, float]:
        """Log-perplexity of each domain's windows and their mean over domains, as metrics.jsonl has them (collective).

        Args:
            model: a model or engine on `device`; called with input_ids, [batch, length], returns an object with
                `logits`, [batch, length, vocabulary]. Whether it was in training mode stays as it was.
        """
        if not self.domains:
            return {}
        nats = torch.zeros(len(self.domains), dtype=torch.float64, device=device)
        was_training = model.training
        model.eval()
        # Not inference_mode: parameters that ZeRO-3 gathers in it and keeps could not be trained with afterwards.
        with torch.no_grad():
            for inputs, labels, domains in self._batches:
                logits = model(input_ids=inputs.to(device), use_cache=False).logits
                # A window at a time: fp32 logits of a whole batch would be the largest tensor of all.
                losses = [
                    cross_entropy(row.float(), label, ignore_index=IGNORED, reduction="none").double().sum()
                    for row, label in zip(logits, labels.to(device), strict=True)
                ]
                nats.index_add_(0, domains.to(device), torch.stack(losses))
        model.train(was_training)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(nats)
        means = [total / tokens for total, tokens in zip(nats.tolist(), self._tokens, strict=True)]
        of_domains = {f"{KEY}/{name}": mean for name, mean in zip(self.domains, means, strict=True)}
        return {KEY: sum(means) / len(means), **of_domains}


def evenly(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` windows, or all where there are fewer: the middle one of each of as many equal parts."""
    wanted = min(count, wanted)
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * count // (2 * wanted)
