"""Model configurations, losses and parameter groups."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from doge_ds.config_sections import TrainingConfig
from doge_ds.errors import ConfigError, DogeError
from doge_ds.training.engine import parameter_groups
from doge_ds.training.model import build_model, flops_per_token, model_config, parameter_count, sequence_losses

SMALL = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}
ZERO2 = {"zero_optimization": {"stage": 2}}


def build(config: object, seed: int = 1, pretrained: str | None = None, **training: object) -> torch.nn.Module:
    settings = TrainingConfig.model_validate({"steps": 1, "learning_rate": 0.1, "seed": seed, **training})
    return build_model(config, ZERO2, settings, pretrained)


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
        ({**SMALL, "n_layer": 2**53}, "model: has 9007199254740992 layers; give at most 1000"),
        ({**SMALL, "n_head": 3}, "model: transformers refuses it"),
        ({**SMALL, "vocab_size": 51}, "model.vocab_size: is 51, but the store's tokenizer has 50 tokens"),
        ({**SMALL, "n_positions": 16}, "model.n_positions: is 16, not at least data.sequence_length 32"),
        ({**SMALL, "n_positions": "many"}, "model.n_positions: is 'many', not at least"),
        ({**SMALL, "activation_function": "relus"}, "model: transformers refuses it"),
        ({**SMALL, "model_type": ["gpt2"]}, "is no causal language model"),
        (
            {"model_type": "gemma3"},
            "'gemma3' is no causal language model of text alone; its text model is 'gemma3_text'",
        ),
    ],
)
def test_each_mistake_gets_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config(settings, 50, 3, 32)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loss_of_each_sequence_is_the_mean_over_all_but_its_first_token() -> None:
    config = model_config({**SMALL, "initializer_range": 0.5}, 50, 3, 12)
    model = build(config)
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
    one, two, other = (build(config, seed) for seed in (1, 1, 2))
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_config(config)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(one.state_dict()[key], tensor)
        assert torch.equal(two.state_dict()[key], tensor)
    assert not torch.equal(one.transformer.wte.weight, other.transformer.wte.weight)


def test_norms_and_biases_do_not_decay() -> None:
    model = build(model_config(SMALL, 50, 3, 12))
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in others["params"]} == {"weight", "bias"}
    assert all("ln_" in names[id(p)] or names[id(p)].endswith("bias") for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_need_not_decay_and_a_tied_output_layer_goes_with_them(tied: bool) -> None:
    model = build(model_config({**SMALL, "tie_word_embeddings": tied}, 50, 3, 12))
    decayed, others = parameter_groups(model, 0.1, decay_embeddings=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(p)] for p in others["params"] if p.ndim == 2}
    assert spared == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert ("lm_head.weight" in {names[id(p)] for p in decayed["params"]}) is not tied
    assert others["weight_decay"] == 0.0


class CountFusedAttention(TorchFunctionMode):
    """Counts the calls of torch's fused attention. Losses do not tell the kernels apart on every CPU."""

    calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += function is torch.nn.functional.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))


def test_attention_is_computed_as_asked_for() -> None:
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(2))
    losses = {}
    for name, calls_per_layer in (("eager", 0), ("sdpa", 1)):
        settings = {**SMALL, "n_layer": 2, "initializer_range": 0.5, "attn_implementation": name}
        model = build(model_config(settings, 50, 3, 12))
        assert model.config._attn_implementation == name
        with CountFusedAttention() as fused:
            losses[name] = sequence_losses(model, tokens)
        assert fused.calls == 2 * calls_per_layer
    torch.testing.assert_close(losses["eager"], losses["sdpa"])


def test_gradient_checkpointing_computes_layers_twice_and_gives_the_same_gradients() -> None:
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(2))
    gradients, calls = [], {}
    for is_on in (False, True):
        settings = {**SMALL, "n_layer": 2, "resid_pdrop": 0.3, "initializer_range": 0.5}
        model = build(model_config(settings, 50, 3, 12), gradient_checkpointing=is_on)
        calls[is_on] = 0

        def count(*_: object, is_on: bool = is_on) -> None:
            calls[is_on] += 1

        for layer in model.transformer.h:
            layer.mlp.register_forward_pre_hook(count)
        torch.manual_seed(5)  # dropout is drawn once more in the backward pass, and must be the same
        sequence_losses(model, tokens).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert calls == {False: 2, True: 4}
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_can_start_from_a_hugging_face_folder(tmp_path: Path) -> None:
    """What the folder says stays, dropout is off, the special tokens are the store's, and the weights are read."""
    saved = build(model_config({**SMALL, "activation_function": "relu", "vocab_size": 64}, 64, 0, 32), seed=9)
    saved.save_pretrained(tmp_path / "hf")
    settings = {"pretrained": str(tmp_path / "hf"), "resid_pdrop": 0.25}
    config = model_config(settings, vocabulary_size=50, end_of_text_id=3, sequence_length=12)
    assert (config.vocab_size, config.n_positions, config.eos_token_id) == (64, 32, 3)
    assert (config.activation_function, config.resid_pdrop, config.attn_pdrop) == ("relu", 0.25, 0.0)
    model = build(config, seed=1, pretrained=settings["pretrained"])
    assert model.training
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.transformer.wte.weight.std() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrained": "{folder}/nowhere"}, "model.pretrained '{folder}/nowhere': is no folder; give a"),
        ({"pretrained": 5}, "model.pretrained: 5 is no model's name; give a Hugging Face folder"),
        ({"pretrained": None}, "model.pretrained: None is no model's name"),
        ({"pretrained": " "}, "model.pretrained: ' ' is no model's name"),
        ({"pretrained": "{folder}/vit"}, "model.pretrained: 'vit' is no causal language model of text alone"),
        ({"pretrained": "{folder}/clip"}, "model.pretrained: 'clip' is no causal language model of text alone"),
        ({"pretrained": "{folder}/gemma3"}, "'gemma3' is no causal language model of text alone; its text model is"),
        ({"pretrained": "{folder}/endless"}, "model: transformers refuses it"),
        ({"pretrained": "{folder}/hf", "model_type": "gpt2"}, "model.model_type: comes from model.pretrained"),
        ({"pretrained": "{folder}/hf", "resid_drop": 0.1}, "gpt2 has no such setting; did you mean 'resid_pdrop'?"),
        ({"pretrained": "{folder}/small"}, "has a vocabulary of 40, the store's tokenizer one of 50"),
        ({"pretrained": "{folder}/short"}, "32 does not fit the model, which has 8 positions; give 8 or less"),
        ({**SMALL, "attn_implementation": "flash_attention_9"}, "model: transformers refuses it"),
    ],
)
def test_what_cannot_be_started_from_is_told_in_one_line(settings: dict, message: str, tmp_path: Path) -> None:
    for name, changes in {"hf": {}, "small": {"vocab_size": 40}, "short": {"n_positions": 8}}.items():
        AutoConfig.for_model(**{**SMALL, "vocab_size": 64, "n_positions": 32, **changes}).save_pretrained(
            tmp_path / name
        )
    for name in ("vit", "clip", "gemma3"):
        AutoConfig.for_model(name).save_pretrained(tmp_path / name)
    write_model(tmp_path / "endless", {**SMALL, "vocab_size": 64, "max_position_embeddings": None})
    settings = {
        key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in settings.items()
    }
    with pytest.raises(DogeError) as caught:
        model_config(settings, 50, 3, 32)
    assert message.format(folder=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def write_model(folder: Path, settings: dict) -> None:
    """A folder without weights, whose config.json says what transformers' own class would refuse to save."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))


def test_a_model_that_names_no_limit_of_positions_takes_any_length(tmp_path: Path) -> None:
    rwkv = {"model_type": "rwkv", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 64}
    write_model(tmp_path / "rwkv", {**rwkv, "max_position_embeddings": None})
    assert model_config({"pretrained": str(tmp_path / "rwkv")}, 50, 3, 5000).vocab_size == 64


def test_a_model_that_was_trained_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Of the same size, so that nothing else could tell; where one side is not known, sizes are all there is."""
    for name, facts in {"ours": {"doge_ds_tokenizer_sha256": "a" * 64}, "not_ours": {}}.items():
        config = AutoConfig.for_model(**{**SMALL, "vocab_size": 50, "n_positions": 32}, **facts)
        config.save_pretrained(tmp_path / name)
    ours, not_ours = ({"pretrained": str(tmp_path / name)} for name in ("ours", "not_ours"))
    with pytest.raises(
        ConfigError, match=r"^model.pretrained: was trained with another tokenizer than the store's; pr"
    ):
        model_config(ours, 50, 3, 32, tokenizer_sha256="b" * 64)
    for settings, sha256 in ((ours, "a" * 64), (ours, None), (not_ours, "b" * 64)):
        assert model_config(settings, 50, 3, 32, tokenizer_sha256=sha256).vocab_size == 50


def test_a_folder_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    config = model_config(SMALL, 50, 3, 12)
    model = build(config)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(DogeError, match=r"lacks 4 of the model's tensors: transformer\.h\.0\.mlp\.c_fc\.bias is the"):
        build(config, pretrained=str(tmp_path))


def test_flops_of_a_token_are_counted_by_hand() -> None:
    length = 32
    # gpt2, tied: a layer has 12 d^2 weights and 13 d biases and norms; the output layer counts, the tables do not
    multiplied = 12 * 16 * 16 + 13 * 16 + 2 * 16 + 50 * 16
    attention = 12 * 1 * 16 * length
    assert flops_per_token(model_config(SMALL, 50, 3, length), length) == 6 * multiplied + attention
    untied = {**SMALL, "tie_word_embeddings": False}
    assert flops_per_token(model_config(untied, 50, 3, length), length) == 6 * multiplied + attention
    llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama |= {"num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 4}
    layer = 16 * (8 + 4 + 4) + 8 * 16 + 3 * 16 * 24 + 2 * 16
    multiplied = 2 * layer + 16 + 50 * 16
    assert flops_per_token(model_config(llama, 50, 3, length), length) == 6 * multiplied + 12 * 2 * 8 * length
    experts = {"model_type": "mixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts |= {"num_key_value_heads": 1, "intermediate_size": 24, "num_local_experts": 2}
    assert flops_per_token(model_config(experts, 50, 3, length), length) is None
    mamba = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    assert flops_per_token(model_config(mamba, 50, 3, length), length) is None
