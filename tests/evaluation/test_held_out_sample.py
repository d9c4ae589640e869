"""A sample of held-out windows: which, what they cost, and that measuring leaves no trace in the model."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from doge_ds.evaluation.held_out_sample import HeldOutSample, evenly
from doge_ds.evaluation.windows import WindowOptions, Windows
from tests.plain_likelihood import negative_log_likelihood

END, LENGTH = 3, 9
# Many windows with a short last one, fewer than are asked for, and less than one window.
TEXTS = {
    name: np.random.default_rng(number).integers(0, 40, tokens, dtype=np.uint16)
    for number, (name, tokens) in enumerate({"a": 8 * 30 + 3, "b": 8 * 2 + 1, "c": 5}.items())
}


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config)  # dropout is 0.1, GPT-2's own


def sample(windows: int = 4, batch_size: int = 3, ranks: tuple[int, int] = (0, 1)) -> HeldOutSample:
    return HeldOutSample(TEXTS, END, LENGTH, windows, batch_size, ranks)


@given(st.integers(1, 300), st.integers(1, 300))
def test_windows_lie_evenly(count: int, wanted: int) -> None:
    chosen = evenly(count, wanted).tolist()
    assert len(set(chosen)) == len(chosen) == min(count, wanted)
    gaps = {after - before for before, after in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert chosen[0] + chosen[-1] in (count - 1, count)  # as far from the beginning as from the end


def test_it_is_what_a_plain_loop_over_these_windows_finds(model: GPT2LMHeadModel) -> None:
    found = sample().measure(model)
    model.eval()
    numbers = {"a": [3, 11, 19, 27], "b": [0, 1, 2], "c": [0]}  # of 31, 3 and 1
    means = []
    for name, text in TEXTS.items():
        windows = Windows(text, END, WindowOptions(LENGTH))
        nats = sum(
            negative_log_likelihood(model, next(windows.batches(1, number, number + 1)).tokens)
            for number in numbers[name]
        )
        means.append(nats / windows.predicted[numbers[name]].sum())
        assert found[f"held_out_log_perplexity/{name}"] == pytest.approx(means[-1], rel=1e-6)
    assert found["held_out_log_perplexity"] == pytest.approx(math.fsum(means) / 3, rel=1e-6)
    assert len(found) == 4
    assert max(means) - min(means) > 0.05  # the domains differ, so equality says something


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
def test_shares_of_any_number_of_ranks_add_up_after_equally_many_forward_passes(
    model: GPT2LMHeadModel, batch_size: int, world_size: int
) -> None:
    whole = sample().measure(model)
    shapes: list[list[torch.Size]] = []

    def note(_: torch.nn.Module, __: object, given: dict[str, torch.Tensor]) -> None:
        shapes[-1].append(given["input_ids"].shape)

    model.register_forward_pre_hook(note, with_kwargs=True)
    shares = []
    for rank in range(world_size):
        shapes.append([])
        shares.append(sample(batch_size=batch_size, ranks=(rank, world_size)).measure(model))
    for key, value in whole.items():
        assert sum(share[key] for share in shares) == pytest.approx(value, rel=1e-6)
    assert shapes == [[torch.Size([batch_size, LENGTH - 1])] * math.ceil(8 / (world_size * batch_size))] * world_size


def test_measuring_leaves_mode_gradients_parameters_and_random_numbers_alone(model: GPT2LMHeadModel) -> None:
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    before = {name: (parameter.clone(), parameter.grad.clone()) for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    for is_training in (True, False):
        model.train(is_training)
        first, second = sample().measure(model), sample().measure(model)
        assert first == second  # without dropout
        assert {module.training for module in model.modules()} == {is_training}
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert torch.equal(parameter.grad, before[name][1])
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()  # can still be trained


def test_a_damaged_model_has_no_number_and_no_domain_no_measurement(model: GPT2LMHeadModel) -> None:
    assert HeldOutSample({}, END, LENGTH, 4, 3).measure(model) == {}
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    assert all(math.isnan(value) for value in sample().measure(model).values())
