"""What the programs take for granted of every method of reweighting: a further one is held to the same."""

import re
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from doge_ds.config import ProxyConfig
from doge_ds.config_sections import METHODS
from doge_ds.experiments.stages import deciding_values
from doge_ds.reweight.diagnostics import FEWEST, Diagnostics
from doge_ds.reweight.domain_weights import Proposal
from doge_ds.train_proxy import first_weights

ABC = ["a", "b", "c"]
RUN: dict[str, Any] = {
    "model": {"model_type": "gpt2"},
    "data": {"path": "store", "sequence_length": 8},
    "training": {"steps": 200, "learning_rate": 0.1, "sequences_per_domain": 2},
    "deepspeed": {},
}


def config_of(method: str, **sections: Any) -> ProxyConfig:
    return ProxyConfig.model_validate({**RUN, "method": method, **sections})


def test_each_method_has_its_section_in_the_run_configuration() -> None:
    assert get_args(ProxyConfig.model_fields["method"].annotation) == tuple(METHODS)
    assert {name: ProxyConfig.model_fields[name].annotation for name in METHODS} == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_its_own_section_counts_and_no_other(method: str) -> None:
    config = config_of(method, **{method: {"smoothing": 0.25}})
    assert isinstance(config.options, METHODS[method])
    assert config.options.smoothing == 0.25
    values = deciding_values(config)
    assert {name for name in METHODS if name in values} == {method}
    assert values[method]["smoothing"] == 0.25
    for other in METHODS.keys() - {method}:
        with pytest.raises(ValidationError, match=f"does not read the section '{other}'"):
            config_of(method, **{other: {"smoothing": 0.25}})


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_is_that_of_its_section(method: str) -> None:
    config = config_of(method)
    assert config.reference is None
    if config.needs_reference:
        config = config_of(method, **{method: {"reference": "a/model"}})
        assert config.reference == "a/model"
        assert deciding_values(config)[method]["reference"] == "known by its content"


@pytest.mark.parametrize("method", METHODS)
def test_weights_start_uniform_and_go_through_a_checkpoint(method: str) -> None:
    config = config_of(method)
    rows = [*ABC, *(["<mix>"] if config.target == "mix" else config.target)]
    weights = first_weights(config, ABC, rows)
    assert weights.current() == pytest.approx(dict.fromkeys(ABC, 1 / 3))
    state = weights.state_dict() | {"weights": {"a": 0.5, "b": 0.3, "c": 0.2}}
    resumed = first_weights(config, ABC, rows)
    resumed.load_state_dict(state)
    assert resumed.current() == {"a": 0.5, "b": 0.3, "c": 0.2}


@pytest.mark.parametrize("method", METHODS)
def test_remedies_against_collapsed_weights_name_keys_that_it_has(method: str) -> None:
    diagnostics = Diagnostics(ABC, config_of(method).options, 200)
    ones = torch.ones(3, dtype=torch.float64)
    collapsed = torch.tensor([0.98, 0.01, 0.01], dtype=torch.float64)
    for step in range(FEWEST + 10):
        diagnostics.observe(step, Proposal(collapsed, ones, ones, ones.bool(), collapsed, ones))
    (warning,) = diagnostics.warnings()
    keys = re.findall(rf"{method}\.(\w+) \(now", warning)
    assert len(keys) == 2
    assert set(keys) <= METHODS[method].model_fields.keys()
