"""Nats of windows against the model's own logits in float64; documents against each one alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.errors import ModelError
from doge_ds.evaluation import likelihood
from doge_ds.evaluation.likelihood import WindowLikelihood, document_positions, linear_nats
from tests.plain_likelihood import negative_log_likelihood

VOCABULARY, END = 23, 4
LLAMA_LIKE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "initializer_range": 0.4}
LLAMA = {"model_type": "llama", **LLAMA_LIKE}
# Logits that are what leaves the output embedding: tied to the input or not, with a bias or without.
PLAIN = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "phi_with_a_bias": {"model_type": "phi", **LLAMA_LIKE, "num_key_value_heads": 2},
    "gemma": {"model_type": "gemma", **LLAMA_LIKE, "head_dim": 8},
}
# And logits that are changed after it.
CHANGED = {
    "gemma2_capped": {"model_type": "gemma2", **LLAMA_LIKE, "head_dim": 8, "final_logit_softcapping": 2.0},
    "granite_scaled": {"model_type": "granite", **LLAMA_LIKE, "logits_scaling": 8.0},
    "cohere_scaled": {"model_type": "cohere", **LLAMA_LIKE, "logit_scale": 0.25},
}


def build(settings: dict, seed: int = 3, **more: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**settings, vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END)
    return AutoModelForCausalLM.from_config(config, **more).eval()


def windows(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def plain(model: torch.nn.Module, tokens: torch.Tensor, predicted: list[int], **arguments: torch.Tensor) -> list[float]:
    """From the logits as the model gives them, in float64."""
    with torch.no_grad():
        logits = model(input_ids=tokens[:, :-1], **arguments).logits.double()
    costs = -logits.log_softmax(-1).gather(2, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    return [float(row[-count:].sum()) for row, count in zip(costs, predicted, strict=True)]


def measure(model: torch.nn.Module, tokens: torch.Tensor, predicted: list[int], document_mask: bool = False) -> list:
    return WindowLikelihood(model, document_mask, END).nats(tokens, torch.tensor(predicted)).tolist()


class RowsOfTheHead:
    """As a context: how many rows the output embedding got in each call."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._head = model.get_output_embeddings()

    def __enter__(self) -> list[int]:
        rows: list[int] = []
        self._hook = self._head.register_forward_hook(
            lambda _, __, output: rows.append(output.numel() // output.shape[-1])
        )
        return rows

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("settings", PLAIN.values(), ids=PLAIN.keys())
def test_in_tiles_as_from_all_logits_at_once(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(settings)
    if model.get_output_embeddings().bias is not None:
        model.get_output_embeddings().bias.data.normal_()
    monkeypatch.setattr(likelihood, "ROWS", 5)  # of 33
    monkeypatch.setattr(likelihood, "TILE", 7)
    tokens = windows(3, 12)
    with RowsOfTheHead(model) as rows:
        found = measure(model, tokens, [11, 11, 11])
    assert rows == [3], "one row a window, to see what becomes of it: no logits of more are ever there"
    assert found == pytest.approx(plain(model, tokens, [11, 11, 11]), rel=1e-6)
    assert sum(found) / 33 > math.log(VOCABULARY) * 1.02  # far from uniform, so equality says something


@pytest.mark.parametrize("settings", CHANGED.values(), ids=CHANGED.keys())
def test_a_model_that_changes_its_logits_after_the_embedding_is_measured_by_its_own(settings: dict) -> None:
    model = build(settings)
    tokens = windows(3, 12)
    scorer = WindowLikelihood(model, False, END)
    expected = plain(model, tokens, [11, 11, 11])
    for _ in range(2):
        assert scorer.nats(tokens, torch.tensor([11, 11, 11])).tolist() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        unchanged = model.get_output_embeddings()(model.get_decoder()(input_ids=tokens[:, :-1]).last_hidden_state)
    wrong = torch.nn.functional.cross_entropy(unchanged.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    assert abs(float(wrong) - sum(expected)) > 0.01 * sum(expected)


def test_a_model_without_an_output_embedding_to_call_is_measured_by_its_own_logits() -> None:
    model = build(LLAMA)
    expected = plain(model, windows(3, 12), [11, 11, 11])
    model.get_output_embeddings = lambda: None
    assert measure(model, windows(3, 12), [11, 11, 11]) == pytest.approx(expected, rel=1e-6)


def test_only_the_predicted_tokens_count() -> None:
    model = build(GPT2)
    tokens = windows(4, 9)
    found = measure(model, tokens, [8, 3, 1, 5])
    assert found == pytest.approx(plain(model, tokens, [8, 3, 1, 5]), rel=1e-6)


@given(st.data())
def test_tiles_and_large_logits_change_nothing(data: st.DataObject) -> None:
    """Against float64, with logits of up to some hundred nats, whose exponentials no float could hold."""
    rows, width, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4)), data.draw(st.integers(2, 30))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    head = torch.nn.Linear(width, columns, bias=data.draw(st.booleans()))
    scale = data.draw(st.sampled_from([0.1, 1.0, 10.0]))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, scale, generator=generator)
        hidden = torch.randn(rows, width, generator=generator) * scale
        labels = torch.randint(columns, (rows,), generator=generator)
        logits = head(hidden).double()
        expected = logits.logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood, "TILE", data.draw(st.integers(1, 31)))
            found = linear_nats(head, hidden, labels)
        half = linear_nats(head.bfloat16(), hidden.bfloat16(), labels)
    assert found.dtype == torch.float32
    tolerance = 1e-6 * (1 + logits.abs().max().item())
    assert found.double().tolist() == pytest.approx(expected.tolist(), abs=3 * tolerance)
    assert half.double().tolist() == pytest.approx(expected.tolist(), abs=3e4 * tolerance)


def test_hooks_are_gone_afterwards_also_where_the_model_fails() -> None:
    model = build(GPT2)
    with pytest.raises(IndexError):
        measure(model, windows(1, 60), [59])  # more than its positions
    measure(model, windows(1, 9), [8])
    head = model.get_output_embeddings()
    assert not head._forward_hooks
    assert not head._forward_pre_hooks


def test_the_sum_over_windows_is_what_training_measures() -> None:
    model = build(LLAMA)
    tokens = windows(3, 12)
    assert sum(measure(model, tokens, [11] * 3)) == pytest.approx(negative_log_likelihood(model, tokens), rel=1e-6)


def segments(window: list[int]) -> list[tuple[int, int]]:
    """Begin and end, in the window, of each document's tokens with the end-of-text token before them in front."""
    begins = [0, *(place for place, token in enumerate(window[:-1]) if token == END and place > 0)]
    return [(begin, end + 1) for begin, end in zip(begins, [*begins[1:], len(window) - 1], strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_masked_documents_cost_what_each_costs_alone(settings: dict, attention: str) -> None:
    model = build(settings, attn_implementation=attention)
    tokens = windows(6, 25, seed=1)
    tokens[:2] = torch.where(tokens[:2] == END, 5, tokens[:2])  # the first: one document, begun before the window
    tokens[1, [0, 7, 8, 20]] = END  # one without a token of its own between two ends
    tokens[2, 24] = END  # predicted, so nothing begins here
    predicted = [24, 24, 24, 24, 10, 3]
    expected = []
    for window, count in zip(tokens.tolist(), predicted, strict=True):
        nats = []
        for begin, end in segments(window):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window[begin : end - 1]])).logits[0].double()
            labels = torch.tensor(window[begin + 1 : end])
            nats += (-logits.log_softmax(-1)).gather(1, labels.unsqueeze(1)).squeeze(1).tolist()
        assert len(nats) == len(window) - 1
        expected.append(sum(nats[-count:]))
    found = measure(model, tokens, predicted, document_mask=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(segments(tokens[1].tolist())) == 4
    unmasked = measure(model, tokens, predicted)
    assert unmasked[0] == pytest.approx(expected[0], rel=1e-5)
    assert abs(unmasked[1] - expected[1]) > 0.01 * expected[1]


def test_a_sliding_window_stays_with_the_document_mask() -> None:
    model = build({"model_type": "mistral", **LLAMA_LIKE, "sliding_window": 3})
    tokens = torch.tensor([[END, *range(5, 17)], [END, 5, 6, END, *range(5, 14)]])
    alone = [
        plain(model, tokens[:1], [12])[0],
        plain(model, tokens[1:, 3:], [9])[0] + plain(model, tokens[1:, :4], [3])[0],
    ]
    assert measure(model, tokens, [12, 12], document_mask=True) == pytest.approx(alone, rel=1e-5)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from([END, END, 5, 6, 7]), min_size=6, max_size=6), min_size=1, max_size=3))
def test_positions_count_from_the_end_of_text_before_the_document(rows: list[list[int]]) -> None:
    expected = []
    for row in rows:
        positions: list[int] = []
        for place, token in enumerate(row):
            positions.append(0 if place == 0 or token == END else positions[-1] + 1)
        expected.append(positions)
    assert document_positions(torch.tensor(rows), END).tolist() == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2},
        {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "pad_token_id": 0},
    ],
    ids=["bloom", "mamba"],
)
def test_a_model_that_cannot_keep_documents_apart_is_refused(settings: dict) -> None:
    model = build(settings)
    assert np.isfinite(measure(model, windows(2, 9), [8, 8])).all()
    with pytest.raises(ModelError, match=r"--document_mask: \w+ does not keep documents apart"):
        measure(model, windows(2, 9), [8, 8], document_mask=True)
