"""Model configurations, losses and parameter groups."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from doge_ds.errors import ConfigError
from doge_ds.training.engine import parameter_groups
from doge_ds.training.model import build_model, model_config, parameter_count, sequence_losses

SMALL = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}
ZERO2 = {"zero_optimization": {"stage": 2}}


def test_what_the_section_leaves_open_is_filled_in() -> None:
    config = model_config(SMALL, vocabulary_size=50, end_of_text_id=3, sequence_length=32)
    assert (config.vocab_size, config.n_positions) == (50, 32)
    assert (config.bos_token_id, config.eos_token_id) == (3, 3)
    assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop} == {0.0}


def test_what_it_says_stays() -> None:
    settings = {**SMALL, "attn_pdrop": 0.2, "max_position_embeddings": 64, "activation_function": "relu"}
    config = model_config(settings, 50, 3, 32)
    assert (config.attn_pdrop, config.resid_pdrop, config.n_positions) == (0.2, 0.0, 64)
    assert config.activation_function == "relu"


def test_other_families_work() -> None:
    llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = model_config({**llama, "num_key_value_heads": 1, "intermediate_size": 24}, 50, 3, 32)
    # embeddings and head 2 x 50 x 16, attention 16 x (16 + 8 + 8 + 16), mlp 3 x 16 x 24, norms 3 x 16
    assert parameter_count(config) == 2 * 50 * 16 + 16 * 48 + 3 * 16 * 24 + 3 * 16


def test_tied_parameters_count_once() -> None:
    layer = 12 * 16 * 16 + 13 * 16
    assert parameter_count(model_config(SMALL, 50, 3, 32)) == 50 * 16 + 32 * 16 + layer + 2 * 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_layer": 2}, "model.model_type: None is no causal language model"),
        ({"model_type": "gpt3"}, "model.model_type: 'gpt3' is no causal language model; did you mean 'gpt"),
        ({**SMALL, "n_layers": 2}, "model.n_layers: gpt2 has no such setting; did you mean 'n_layer'?"),
        ({**SMALL, "n_layer": "two"}, "model: transformers refuses it"),
        ({**SMALL, "n_head": 3}, "model: transformers refuses it"),
        ({**SMALL, "vocab_size": 51}, "model.vocab_size: is 51, but the store's tokenizer has 50 tokens"),
        ({**SMALL, "n_positions": 16}, "model.n_positions: is 16, not at least data.sequence_length 32"),
        ({**SMALL, "n_positions": "many"}, "model.n_positions: is 'many', not at least"),
        ({**SMALL, "activation_function": "relus"}, "model: transformers refuses it"),
        ({**SMALL, "model_type": ["gpt2"]}, "is no causal language model"),
    ],
)
def test_each_mistake_gets_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config(settings, 50, 3, 32)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loss_of_each_sequence_is_the_mean_over_all_but_its_first_token() -> None:
    config = model_config({**SMALL, "initializer_range": 0.5}, 50, 3, 12)
    model = build_model(config, ZERO2, seed=1)
    tokens = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(2))
    found = sequence_losses(model, tokens)
    exact = model.double()
    for sequence, loss in zip(tokens, found, strict=True):
        logits = exact(input_ids=sequence.unsqueeze(0)).logits[0]
        by_hand = [
            math.log(logits[place].exp().sum()) - float(logits[place, sequence[place + 1]]) for place in range(11)
        ]
        assert float(loss) == pytest.approx(sum(by_hand) / 11, rel=1e-5)
    assert found.std() > 0.01


def test_the_same_seed_builds_the_same_model_and_it_is_transformers_own_initialisation() -> None:
    config = model_config(SMALL, 50, 3, 12)
    one, two, other = (build_model(config, ZERO2, seed) for seed in (1, 1, 2))
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_config(config)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(one.state_dict()[key], tensor)
        assert torch.equal(two.state_dict()[key], tensor)
    assert not torch.equal(one.transformer.wte.weight, other.transformer.wte.weight)


def test_norms_and_biases_do_not_decay() -> None:
    model = build_model(model_config(SMALL, 50, 3, 12), ZERO2, seed=1)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in others["params"]} == {"weight", "bias"}
    assert all("ln_" in names[id(p)] or names[id(p)].endswith("bias") for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)
