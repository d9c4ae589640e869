"""Held-out perplexity against a float64 reference and against models whose perplexity is known by hand."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.errors import ModelError
from doge_ds.evaluation.perplexity import (
    DomainLosses,
    DomainPerplexity,
    HeldOutText,
    WindowOptions,
    averages,
    measure_domain,
    summary,
)

VOCABULARY, END = 23, 4


class Bigram(torch.nn.Module):
    """A model whose prediction depends on the one token before: its perplexity is a sum over pairs."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def text(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype("<u2")


def losses(
    model: torch.nn.Module, tokens: np.ndarray, options: WindowOptions, batch_size: int = 3, **more: Any
) -> DomainLosses:
    return measure_domain(model, HeldOutText(tokens, 100), END, options, batch_size, **more)


def measure(
    model: torch.nn.Module, tokens: np.ndarray, length: int = 8, batch_size: int = 3, of_bytes: int = 100
) -> DomainPerplexity:
    return summary(losses(model, tokens, WindowOptions(length), batch_size), HeldOutText(tokens, of_bytes), seed=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 7))
def test_a_bigram_model_shows_that_each_token_is_predicted_once_from_the_one_before(
    count: int, length: int, batch_size: int
) -> None:
    logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    tokens = text(count)
    stream = [END, *tokens.tolist()]
    rows = logits.double().tolist()
    nats = sum(
        math.log(sum(math.exp(value) for value in rows[before])) - rows[before][token]
        for before, token in itertools.pairwise(stream)
    )
    found = measure(Bigram(logits), tokens, length, batch_size, of_bytes=77)
    assert found.log_perplexity == pytest.approx(nats / count, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 77, rel=1e-6)
    assert (found.tokens, found.bytes) == (count, 77)


GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 12, "initializer_range": 0.4}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "initializer_range": 0.4,
}


@pytest.mark.parametrize("settings", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_equals_a_float64_loop_one_window_at_a_time_whatever_the_batch_size(settings: dict) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**settings, vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END)
    )
    tokens = text(101)
    found = [measure(model, tokens, length=12, batch_size=size).log_perplexity for size in (1, 4, 64)]
    exact = model.double().eval()
    stream = [END, *tokens.tolist()]
    nats = 0.0
    for start in range(0, 101, 11):
        window = stream[start : start + 12]
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([window[:-1]])).logits[0].tolist()
        for row, token in zip(logits, window[1:], strict=True):
            nats += math.log(sum(math.exp(value) for value in row)) - row[token]
    assert found == pytest.approx([nats / 101] * 3, rel=1e-6)
    assert nats / 101 > math.log(VOCABULARY) * 1.02  # far from uniform, so equality says something


@pytest.mark.parametrize("stride", [1, 4, 7, 11])
@pytest.mark.parametrize("settings", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_overlapping_windows_give_each_token_the_context_that_was_promised(settings: dict, stride: int) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**settings, vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END)
    )
    tokens = text(53)
    found = [losses(model, tokens, WindowOptions(12, stride), size) for size in (1, 4, 64)]
    stream = [END, *tokens.tolist()]
    exact = model.double().eval()
    expected: list[float] = []
    begin = 0  # of a window, in the stream
    while len(expected) < 53:
        window = torch.tensor(stream[begin : begin + 12])
        with torch.no_grad():
            nats = -exact(input_ids=window[None, :-1]).logits[0].log_softmax(-1)
        costs = nats.gather(1, window[1:, None]).squeeze(1).tolist()
        expected += costs[len(expected) - begin :]  # its first prediction is of token begin + 1, counted from 1
        begin += stride
    for one in found:
        assert one.tokens.sum() == 53
        ends = np.cumsum(one.tokens)
        # A loss is a difference of two float32 numbers of up to 5, which round by 2e-6 each, however small it is.
        assert one.nats == pytest.approx(
            [sum(expected[end - n : end]) for end, n in zip(ends, one.tokens, strict=True)], rel=1e-6, abs=4e-6
        )


def test_more_context_helps_a_model_that_uses_it_and_nothing_is_counted_twice() -> None:
    model, tokens = Bigram(torch.randn(VOCABULARY, VOCABULARY)), text(100)
    found = [losses(model, tokens, WindowOptions(8, stride)).nats.sum() for stride in (None, 1, 3)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)  # one token of context is all that it uses


def test_progress_is_told_every_token_once() -> None:
    told: list[int] = []
    losses(Bigram(torch.zeros(VOCABULARY, VOCABULARY)), text(50), WindowOptions(8, 3), progress=told.append)
    assert sum(told) == 50
    assert told[0] == 7 + 3 + 3


def test_the_last_position_which_training_never_predicts_from_is_never_used() -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**GPT2, vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END)
    )
    tokens = text(50)
    before = measure(model, tokens, length=12)
    model.transformer.wpe.weight.data[-1] = math.nan  # position 11, counted from 0
    assert measure(model, tokens, length=12) == before
    with pytest.raises(ModelError):
        measure(model, tokens, length=13)


def test_dropout_is_off() -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**GPT2, vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END, resid_pdrop=0.5)
    ).train()
    assert measure(model, text(50)) == measure(model, text(50))


def test_a_uniform_model_has_the_vocabularys_size_as_perplexity() -> None:
    assert measure(Bigram(torch.zeros(VOCABULARY, VOCABULARY)), text(50)).perplexity == pytest.approx(VOCABULARY)


def test_averages_count_each_domain_the_same() -> None:
    logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    texts = {"a": HeldOutText(text(10, 1), 30), "b": HeldOutText(text(900, 2), 99), "c": HeldOutText(text(40, 3), 9)}
    found = {
        name: summary(losses(Bigram(logits), one.tokens, WindowOptions(8), 4), one, seed=0)
        for name, one in texts.items()
    }
    logs = [found[name].log_perplexity for name in "abc"]
    assert max(logs) - min(logs) > 0.01
    summed = averages(found)
    assert logs[ord(summed.pop("worst_domain")) - ord("a")] == summed["worst_log_perplexity"]
    assert summed == pytest.approx(
        {
            "average_log_perplexity": sum(logs) / 3,
            "average_perplexity": sum(math.exp(log) for log in logs) / 3,
            "geometric_perplexity": math.prod(math.exp(log) for log in logs) ** (1 / 3),
            "worst_log_perplexity": max(logs),
        }
    )


def test_damaged_weights_are_named_with_the_domain() -> None:
    told: list[int] = []
    model = Bigram(torch.full((VOCABULARY, VOCABULARY), torch.nan))
    with pytest.raises(ModelError, match="the model on d: gives a log-likelihood of nan"):
        losses(model, text(900), WindowOptions(8), progress=told.append, name="d")
    assert not told  # at once, not after all batches


def test_a_hopeless_model_has_infinite_perplexity_and_a_finite_logarithm() -> None:
    logits = torch.zeros(VOCABULARY, VOCABULARY)
    logits[:, 0] = 2000.0
    found = measure(Bigram(logits), np.ones(5, dtype="<u2"))
    assert found.log_perplexity == pytest.approx(2000)
    assert found.perplexity == math.inf
    summed = averages({"d": found})
    assert summed["average_log_perplexity"] == pytest.approx(2000)
    assert summed["average_perplexity"] == summed["geometric_perplexity"] == math.inf
