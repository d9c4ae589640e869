"""DoGE under ZeRO-2 on 1, 2 and 4 real ranks against the float64 reference in one process."""

import copy
import json
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from doge_ds.config_sections import DogeConfig
from doge_ds.training.hugging_face import export_checkpoint
from doge_ds.training.model import model_config
from tests import reference_doge as reference
from tests import reference_doremi as doremi
from tests import reference_extensions as extensions
from tests.distributed.ranks import run_worker
from tests.distributed.scenarios import (
    DOREMI,
    EVALUATED,
    EXACT,
    EXTENDED,
    HALF,
    ROUNDED,
    SKIPPED,
    STEPS,
    batches_of,
    freeze,
    rows_of,
    runs_on,
)

EXTENDED_NAMES = [scenario["name"] for scenario in EXTENDED]
SCENARIOS = [*EXACT, *DOREMI, *EXTENDED, *ROUNDED, *SKIPPED, *HALF, *EVALUATED]
WORLD_SIZES = [1, 2, 4]
FORMS = {"bf16_buffer": "buffer", "bf16_list": "list", "bf16_rows": "list"}


def runs(names: Iterable[str]) -> list[tuple[str, int]]:
    """Each scenario with each number of ranks that it is run on."""
    return [(name, ranks) for name in names for ranks in WORLD_SIZES if runs_on(name, ranks)]


EXACT_RUNS = runs(scenario["name"] for scenario in EXACT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Results of all scenarios, one start for each number of ranks."""
    found = {}
    for world_size in WORLD_SIZES:
        folder = found[world_size] = tmp_path_factory.mktemp(f"ranks{world_size}")
        chosen = [scenario for scenario in SCENARIOS if runs_on(scenario["name"], world_size)]
        (folder / "scenarios.json").write_text(json.dumps(chosen))
        run_worker(world_size, "proxy_worker.py", str(folder / "scenarios.json"), str(folder))
    return found


def by_name(name: str) -> dict:
    return next(scenario for scenario in SCENARIOS if scenario["name"] == name)


@cache
def expected(name: str, initial: Path, applied: tuple[bool, ...] = (True,) * STEPS) -> tuple[dict, dict]:
    """The reference's history and final parameters, from the initial parameters that the ranks started with.

    A step that was not applied never happened: the reference goes on with the next one's tokens at the same rate.
    """
    scenario = by_name(name)
    model = AutoModelForCausalLM.from_config(
        model_config(scenario["model"], scenario["vocabulary"], 0, scenario["length"])
    )
    model.load_state_dict(torch.load(initial, weights_only=True))
    model = model.double()
    freeze(model, scenario.get("frozen", ""))
    training = scenario["training"]
    settings = {
        "steps": training["steps"],
        "warmup": training["warmup_steps"],
        "peak": training["learning_rate"],
        "smallest": training["min_learning_rate"],
        "weight_decay": training["weight_decay"],
        "clipping": training["gradient_clipping"],
        "betas": (0.9, 0.95),
        "eps": 1e-4,
    }
    if "method" in scenario:
        compared = copy.deepcopy(model)
        compared.load_state_dict(torch.load(initial.with_name(f"{name}.reference.pt"), weights_only=True))
        options = {key: scenario["doge"][key] for key in ("step_size", "smoothing")}
        batches = partial(batches_of, scenario)
        return doremi.train(model, compared, batches, scenario["train_rows"], settings | options), model.state_dict()
    doge = DogeConfig.model_validate(scenario["doge"])
    target = [scenario["rows"].index(row) for row in doge.target] if isinstance(doge.target, list) else doge.target
    settings |= {
        "target": target,
        **{key: getattr(doge, key) for key in ("clip_domain_gradients", "normalize", "clip", "mu")},
        **{key: getattr(doge, key) for key in ("step_size", "divergence", "smoothing")},
    }
    if name in EXTENDED_NAMES:
        settings |= {"decay": doge.absent_score_decay, "selection": doge.selection and doge.selection.model_dump()}

        def rows(step: int) -> tuple[dict[int, torch.Tensor], bool]:
            (chosen, is_update), tokens = rows_of(scenario, step), batches_of(scenario, step)
            return {row: tokens[row] for row in chosen}, is_update

        return extensions.train(model, rows, scenario["train_rows"], settings), model.state_dict()
    steps = [step for step, was_applied in enumerate(applied) if was_applied]

    def tokens_of(number: int) -> list[torch.Tensor]:
        return batches_of(scenario, steps[min(number, len(steps) - 1)])

    history = reference.train(model, tokens_of, scenario["train_rows"], settings)
    return history, model.state_dict()


def assert_same_parameters(final: dict, parameters: dict) -> None:
    for key, tensor in parameters.items():
        difference = (final[key].double() - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert difference < 1e-5, key


@pytest.mark.parametrize(("name", "world_size"), EXACT_RUNS)
def test_every_step_and_the_final_model_equal_the_reference(
    name: str, world_size: int, folders: dict[int, Path]
) -> None:
    history, parameters = expected(name, folders[1] / f"{name}.initial.pt")
    found = json.loads((folders[world_size] / f"{name}.json").read_text())
    weights, wanted = torch.tensor(found["weights"]), torch.tensor(history["weights"])
    assert (weights - wanted).abs().max() < 1e-5
    assert wanted.std(dim=1).max() > 1e-3  # the weights moved apart, so equality says something
    assert found["mean"] == pytest.approx(history["mean"], abs=1e-5)
    torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(history["losses"]), rtol=1e-5, atol=1e-5)
    gram, wanted_gram = torch.tensor(found["gram"]), torch.tensor(history["gram"])
    assert ((gram - wanted_gram).abs() / wanted_gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]).max() < 1e-4
    assert_same_parameters(torch.load(folders[world_size] / f"{name}.final.pt", weights_only=True), parameters)


@pytest.mark.parametrize(("name", "world_size"), runs(scenario["name"] for scenario in DOREMI))
def test_every_step_of_doremi_and_the_final_model_equal_its_reference(
    name: str, world_size: int, folders: dict[int, Path]
) -> None:
    history, parameters = expected(name, folders[1] / f"{name}.initial.pt")
    found = json.loads((folders[world_size] / f"{name}.json").read_text())
    excess, wanted = torch.tensor(found["scores"]), torch.tensor(history["excess"])
    torch.testing.assert_close(excess, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.min() > 0.01
    # Some tokens are below the reference in every step and domain: clipped domain means would be other numbers.
    assert (wanted - torch.tensor(history["clipped_mean"])).min() > 0.01
    torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(history["losses"]), rtol=1e-5, atol=1e-5)
    weights = torch.tensor(history["weights"])
    assert (torch.tensor(found["weights"]) - weights).abs().max() < 1e-5
    assert weights.std(dim=1).max() > 0.02
    assert found["mean"] == pytest.approx(history["mean"], abs=1e-5)
    assert_same_parameters(torch.load(folders[world_size] / f"{name}.final.pt", weights_only=True), parameters)


@pytest.mark.parametrize(("name", "world_size"), runs(EXTENDED_NAMES))
def test_subsets_rare_updates_and_selections_equal_theirs(name: str, world_size: int, folders: dict[int, Path]) -> None:
    history, parameters = expected(name, folders[1] / f"{name}.initial.pt")
    found = json.loads((folders[world_size] / f"{name}.json").read_text())
    wanted = torch.tensor(history["weights"])
    assert (torch.tensor(found["weights"]) - wanted).abs().max() < 1e-5
    assert wanted.std(dim=1).max() > 1e-3
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor(history["scores"]), rtol=1e-4, atol=1e-5)
    assert_same_parameters(torch.load(folders[world_size] / f"{name}.final.pt", weights_only=True), parameters)
    assert found["selection"]["selected"] == history["chosen"]
    if history["chosen"]:
        effects = list(found["selection"]["cancellation_effect"].values())
        assert effects == pytest.approx(history["effects"], rel=1e-3)
        assert 0 < found["selection"]["share_of_parameters"] < 1
    if "every" in name:  # weights stay, the model does not
        assert found["weights"][7] == found["weights"][6] == found["weights"][5] != found["weights"][4]


def test_one_two_and_four_ranks_give_the_same_weights(folders: dict[int, Path]) -> None:
    for name, world_size in EXACT_RUNS:
        one, other = (
            torch.tensor(json.loads((folders[ranks] / f"{name}.json").read_text())["weights"])
            for ranks in (1, world_size)
        )
        assert (one - other).abs().max() < 1e-5, name


@pytest.mark.parametrize(("name", "world_size"), runs(FORMS))
def test_bf16_in_both_forms_and_in_the_rows_alone_follows_the_reference(
    name: str, world_size: int, folders: dict[int, Path]
) -> None:
    history, _ = expected(name, folders[1] / f"{name}.initial.pt")
    found = json.loads((folders[world_size] / f"{name}.json").read_text())
    assert found["form"] == FORMS[name]
    assert found["groups"] == 2
    wanted = torch.tensor(history["weights"])
    assert (torch.tensor(found["weights"]) - wanted).abs().max() < 0.1 * (wanted - 1 / 3).abs().max()
    torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(history["losses"]), rtol=0.02, atol=0.02)
    first, wanted_first = torch.tensor(found["gram"][0]), torch.tensor(history["gram"][0])
    assert ((first - wanted_first).abs() / wanted_first.diagonal().max()).max() < 0.02


@pytest.mark.parametrize(("name", "world_size"), runs(scenario["name"] for scenario in SKIPPED))
def test_a_step_with_nan_changes_neither_weights_nor_sum_nor_count(
    name: str, world_size: int, folders: dict[int, Path]
) -> None:
    found = json.loads((folders[world_size] / f"{name}.json").read_text())
    assert found["applied"] == [step != 7 for step in range(20)]
    assert found["count"] == [step + 1 - (step >= 7) for step in range(20)]
    assert found["weights"][7] == found["weights"][6]
    assert found["weights"][8] != found["weights"][7]
    accepted = [weights for step, weights in enumerate(found["weights"]) if step != 7]
    assert found["mean"] == pytest.approx(torch.tensor(accepted, dtype=torch.float64).mean(dim=0).tolist(), rel=1e-12)
    final = torch.load(folders[world_size] / f"{name}.final.pt", weights_only=True)
    assert all(torch.isfinite(tensor.float()).all() for tensor in final.values())


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_fp16_skips_what_overflows_and_equals_the_reference_without_these_steps(
    world_size: int, folders: dict[int, Path]
) -> None:
    """A skipped step leaves weights, sum and count, and the learning rate; no loss scale is left in the Gram matrix."""
    found = json.loads((folders[world_size] / "fp16.json").read_text())
    applied = found["applied"]
    assert applied[0] is False  # the first scale, 2^22, is too large
    assert 35 < sum(applied) < 50
    assert found["weights"][0] == [1 / 3] * 3
    assert found["count"] == [sum(applied[: step + 1]) for step in range(50)]
    for step in range(1, 50):
        assert (found["weights"][step] == found["weights"][step - 1]) is not applied[step] or step < 8
    assert found["form"] == "buffer"
    history, _ = expected("fp16", folders[1] / "fp16.initial.pt", tuple(applied))
    count = sum(applied)
    weights, gram = (torch.tensor(found[key])[torch.tensor(applied)] for key in ("weights", "gram"))
    wanted = torch.tensor(history["weights"][:count])
    assert (weights - wanted).abs().max() < 0.01 * (wanted - 1 / 3).abs().max()
    assert found["mean"] == pytest.approx(wanted.mean(dim=0).tolist(), abs=0.002)
    wanted_gram = torch.tensor(history["gram"][:count])
    assert ((gram - wanted_gram).abs() / wanted_gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]).max() < 0.01


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_measuring_held_out_text_changes_no_bit_under_zero2(world_size: int, folders: dict[int, Path]) -> None:
    folder = folders[world_size]
    plain, evaluated = (json.loads((folder / f"{name}.json").read_text()) for name in ("all_paper", "evaluated"))
    assert plain.pop("held_out") == [{}]
    assert len(measured := evaluated.pop("held_out")) == 3
    assert plain == evaluated
    one, other = (torch.load(folder / f"{name}.final.pt", weights_only=True) for name in ("all_paper", "evaluated"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    # Before the first step all numbers of ranks have the same model.
    alone = json.loads((folders[1] / "evaluated.json").read_text())["held_out"][0]
    assert measured[0] == pytest.approx(alone, rel=1e-6)
    assert measured[2]["held_out_log_perplexity"] < measured[0]["held_out_log_perplexity"]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_zero2_checkpoint_of_any_number_of_ranks_is_exported_with_the_engines_logits(
    world_size: int, folders: dict[int, Path], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").mkdir()
    folder, scenario = folders[world_size], by_name("evaluated")
    shape = model_config(scenario["model"], scenario["vocabulary"], 0, scenario["length"])
    saved = {}
    for dtype in (torch.float32, torch.bfloat16):
        output = tmp_path / str(dtype)
        checkpoint = folder / f"checkpoints/step{STEPS:08d}"
        export_checkpoint(checkpoint, shape, {}, tmp_path / "tokenizer", "card", output, dtype)
        saved[dtype] = AutoModelForCausalLM.from_pretrained(output).eval()
    with torch.no_grad():
        logits = saved[torch.float32](input_ids=batches_of(scenario, 0)[0]).logits
    wanted = torch.load(folder / f"logits{world_size - 1}.pt", weights_only=True)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 0.05
    whole, rounded = (saved[dtype].state_dict() for dtype in saved)
    assert all(torch.equal(rounded[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items())
