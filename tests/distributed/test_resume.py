"""A run that is stopped, then killed, then finished equals an undisturbed one: bit for bit, with dropout on."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from doge_ds.data.tokens import TokenStore
from doge_ds.evaluation.perplexity import WindowOptions
from doge_ds.evaluation.windows import Windows
from tests.distributed.comparing import count_equal_tensors, metrics_of
from tests.distributed.ranks import ROOT, Ranks, deepspeed, environment, run_worker
from tests.distributed.small_runs import SEQUENCE_LENGTH, small_store, write_config
from tests.plain_likelihood import negative_log_likelihood

EVALUATED = {"eval_every": 3, "eval_windows": 5}
PROGRAMS = {"proxy": "doge_ds/train_proxy.py", "base": "doge_ds/train_base.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undisturbed and disturbed runs of both programs, on 2 ranks each."""
    folder = tmp_path_factory.mktemp("resume")
    store = small_store(folder / "store")
    (folder / "mixture.json").write_text('{"version": 1, "domains": {"a": 0.2, "b": 0.7, "c": 0.1}}')
    for stage, program in PROGRAMS.items():
        config = write_config(folder / f"{stage}.json", store, stage, training=EVALUATED)
        arguments = ["--config", str(config)]
        arguments += ["--mixture", str(folder / "mixture.json")] if stage == "base" else []
        undisturbed = Ranks(2, program, *arguments, "--output", str(folder / f"{stage}_undisturbed"))
        assert undisturbed.finish()[0] == [0, 0]
        disturb(folder, stage, program, [*arguments, "--output", str(folder / f"{stage}_disturbed")])
    return folder


def export(*arguments: str) -> str:
    """What `doge-ds export` prints, in a process of its own."""
    command = [sys.executable, "-m", "doge_ds.cli", "export", *arguments]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def disturb(folder: Path, stage: str, program: str, arguments: list[str]) -> None:
    """SIGTERM to one rank in mid-run; SIGKILL in the middle of a checkpoint; and to the end by the deepspeed launcher.

    Of the proxy all ranks are killed, of the base one, and the other has to end by itself.
    """
    run = folder / f"{stage}_disturbed"
    metrics = run / "metrics.jsonl"
    stopped = Ranks(2, program, *arguments)
    stopped.wait_for_lines(metrics, 9)
    stopped.processes[1].send_signal(signal.SIGTERM)
    statuses, printed = stopped.finish()
    assert statuses == [75, 75], printed
    assert re.search(r"stopped and saved after step (\d+) of 40 \(another rank\); the same command continues", printed)
    assert metrics.read_text().count("\n") < 40
    killed = Ranks(2, program, *arguments)
    killed.wait_for_lines(metrics, 27)
    killed.wait_until(lambda: any((run / "checkpoints").glob("*.tmp/*")))
    if stage == "proxy":
        printed = killed.kill()
    else:
        killed.processes[1].send_signal(signal.SIGKILL)
        statuses, printed = killed.finish(60)
        assert statuses == [1, -signal.SIGKILL]
        place = r"last seen in (the \w+ after )?step \d+; "  # also where it was killed before its first beat in a step
        assert re.search(r"error: the ranks: rank 1 \(process \d+ on \S+\) does not answer, " + place, printed), printed
    assert int(re.findall(r"continues after step (\d+) of 40", printed)[0]) >= 9
    assert metrics.read_text().count("\n") < 40
    (run / "checkpoints/step00000099").mkdir()  # later than latest
    last = deepspeed(2, program, *arguments)
    assert int(re.findall(r"continues after step (\d+) of 40", last.stdout)[0]) >= 18
    (folder / f"{stage}_last_output").write_text(last.stdout)
    assert last.returncode == 0, last.stdout


@pytest.mark.parametrize("stage", PROGRAMS)
def test_metrics_are_bitwise_equal_without_gaps_or_repeats(folder: Path, stage: str) -> None:
    undisturbed, disturbed = metrics_of(folder / f"{stage}_undisturbed"), metrics_of(folder / f"{stage}_disturbed")
    assert [line["step"] for line in disturbed] == list(range(1, 41))
    assert disturbed == undisturbed
    assert undisturbed[-1]["loss"] < undisturbed[0]["loss"] - 0.1


@pytest.mark.parametrize("stage", PROGRAMS)
def test_held_out_text_is_measured_as_a_plain_loop_over_the_exported_model_does(folder: Path, stage: str) -> None:
    lines = metrics_of(folder / f"{stage}_undisturbed")
    assert [line["step"] for line in lines if "held_out_log_perplexity" in line] == [*range(3, 40, 3), 40]
    output = folder / f"{stage}_in_files"
    checkpoint = folder / f"{stage}_undisturbed/checkpoints/step00000040"
    assert export(str(checkpoint), "-o", str(output), "--max_shard_size", "10KB") == f"written: {output}\n"
    assert len(list(output.glob("model-*.safetensors"))) > 2
    model, store = AutoModelForCausalLM.from_pretrained(output).eval(), TokenStore(folder / "store")
    found = {}
    for name in "abcx" if stage == "proxy" else "abc":
        windows = Windows(store.tokens(name, "valid"), 0, WindowOptions(SEQUENCE_LENGTH))
        batches = [next(windows.batches(1, number, number + 1)).tokens for number in (10, 30, 50, 70, 90)]
        found[f"held_out_log_perplexity/{name}"] = negative_log_likelihood(model, torch.cat(batches)) / (5 * 15)
    found["held_out_log_perplexity"] = sum(found.values()) / len(found)
    assert {key: value for key, value in lines[-1].items() if "held_out" in key} == pytest.approx(found, rel=1e-6)
    assert lines[-1]["held_out_log_perplexity"] < lines[2]["held_out_log_perplexity"] - 0.1


@pytest.mark.parametrize("stage", PROGRAMS)
def test_final_parameters_and_optimizer_are_bitwise_equal(folder: Path, stage: str) -> None:
    compared = 0
    for rank in range(2):
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        one, other = (
            torch.load(folder / f"{stage}_{kind}" / "checkpoints" / "step00000040" / name, weights_only=False)
            for kind in ("undisturbed", "disturbed")
        )
        compared += count_equal_tensors(one, other)
    assert compared >= 2 * 3  # parameters and both moments on each rank


@pytest.mark.parametrize("stage", PROGRAMS)
def test_tensorboard_has_every_scalar_once_a_step_after_a_stop_and_a_kill(folder: Path, stage: str) -> None:
    events = EventAccumulator(str(folder / f"{stage}_disturbed/tensorboard"), {"scalars": 0}).Reload()
    lines = [json.loads(line) for line in (folder / f"{stage}_disturbed/metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name, value in line.items() if isinstance(value, bool | int | float)}
    assert set(events.Tags()["scalars"]) == names - {"step"}
    for name in names - {"step"}:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [
            (line["step"], pytest.approx(float(line[name]), rel=1e-6)) for line in lines if name in line
        ], name


def test_mixture_is_the_mean_of_the_logged_weights(folder: Path) -> None:
    mixtures = [
        json.loads((folder / f"proxy_{kind}/mixture.json").read_text()) for kind in ("undisturbed", "disturbed")
    ]
    assert mixtures[0]["domains"] == mixtures[1]["domains"]
    lines = metrics_of(folder / "proxy_undisturbed")
    for name, weight in mixtures[0]["domains"].items():
        assert weight == pytest.approx(sum(line[f"weight/{name}"] for line in lines) / 40, abs=1e-12)
    assert list(mixtures[0]["domains"]) == ["a", "b", "c"]
    assert max(mixtures[0]["domains"], key=mixtures[0]["domains"].__getitem__) == "b"  # x is made like b
    assert mixtures[0]["source"]["accepted_steps"] == 40


def test_only_the_newest_checkpoints_are_kept(folder: Path) -> None:
    for run in ("base_undisturbed", "base_disturbed", "proxy_disturbed"):
        kept = sorted(path.name for path in (folder / run / "checkpoints").glob("step*"))
        assert kept == ["step00000036", "step00000040"]
        assert (folder / run / "checkpoints/latest").read_text() == "step00000040"


def test_a_finished_run_says_so_and_a_changed_one_is_refused(folder: Path) -> None:
    arguments = ["--config", str(folder / "proxy.json"), "--output", str(folder / "proxy_disturbed")]
    before = (folder / "proxy_disturbed/metrics.jsonl").read_bytes()
    statuses, printed = Ranks(1, PROGRAMS["proxy"], *arguments).finish()
    assert statuses == [0]
    assert "finished" in printed
    statuses, printed = Ranks(1, PROGRAMS["proxy"], *arguments, "--set", "doge.mu=0.5").finish()
    assert statuses == [2]
    assert "config.doge.mu is 0.02 there and 0.5 here" in printed
    assert (folder / "proxy_disturbed/metrics.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict:
    """What base_worker.py found."""
    run_worker(2, "base_worker.py", str(folder))
    found: dict = torch.load(folder / "base_worker.pt", weights_only=True)
    return found


def test_hugging_face_folder_has_the_engines_logits_and_zero3_initialises_as_transformers_does(
    folder: Path, engines: dict
) -> None:
    results = engines
    torch.testing.assert_close(results["hugging_face"], results["engine"], rtol=1e-5, atol=1e-5)
    assert results["engine"].std() > 0.05
    assert len(results["plain"]) == len(results["zero3"]) > 20
    for name, (mean, deviation) in results["plain"].items():
        mean3, deviation3 = results["zero3"][name]
        assert deviation3 == pytest.approx(deviation, rel=0.1, abs=1e-8), name
        assert mean3 == pytest.approx(mean, abs=0.2 * deviation + 1e-8), name
    saved = load_file(folder / "base_undisturbed/hf/model.safetensors")
    assert saved["transformer.wte.weight"].shape == (64, 24)


def test_any_checkpoint_can_be_exported_in_bf16_with_a_card_that_says_what_it_saw(folder: Path) -> None:
    arguments = ["--dtype", "bfloat16", "--step", "36", "--output", str(folder / "halfway")]
    assert export(str(folder / "base_disturbed"), *arguments) == f"written: {folder / 'halfway'}\n"
    halfway, final = (
        load_file(path / "model.safetensors") for path in (folder / "halfway", folder / "base_disturbed/hf")
    )
    assert {tensor.dtype for tensor in halfway.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert json.loads((folder / "halfway/config.json").read_text())["dtype"] == "bfloat16"
    name = "transformer.h.0.mlp.c_fc.weight"
    difference = (halfway[name].float() - final[name]).abs().max()
    assert 1e-5 < difference < 0.05  # four steps of training lie between them
    for path, step, dtype in (("halfway", 36, "bfloat16"), ("base_disturbed/hf", 40, "float32")):
        card = (folder / path / "README.md").read_text()
        samples = step * 8
        assert f"saved in {dtype}; pretrained from scratch" in card
        assert f"{samples * 16:,} tokens: {step} steps of 8 sequences of 16 tokens" in card
        seen = re.findall(r"^\| (\w) \| 0\.(\d+) \| ([\d,]+) \|$", card, re.MULTILINE)
        assert [(domain, weight) for domain, weight, _ in seen] == [("b", "7000"), ("a", "2000"), ("c", "1000")]
        counts = [int(count.replace(",", "")) / 16 for _, _, count in seen]
        assert sum(counts) == samples
        assert counts == pytest.approx([0.7 * samples, 0.2 * samples, 0.1 * samples], abs=1)
        facts = json.loads((folder / "base_disturbed/run.json").read_text())
        assert facts["store"] in card
        assert facts["tokenizer_sha256"] in card
        embedded = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", card, re.DOTALL)]
        assert embedded == [
            json.loads((folder / "base_disturbed/config.json").read_text()),
            {"version": 1, "domains": {"a": 0.2, "b": 0.7, "c": 0.1}},
        ]


def test_a_proxy_can_be_exported_with_a_card_that_says_what_it_is(folder: Path) -> None:
    export(str(folder / "proxy_disturbed"), "-o", str(folder / "proxy_hf"), "--step", "36")
    card = (folder / "proxy_hf/README.md").read_text()
    assert (
        f"saved in float32; pretrained from scratch with doge_ds on {4 * 36 * 4 * 16:,} tokens: 36 steps of 4" in card
    )
    seen = re.findall(r"^\| (\w) \| (\S+) \| ([\d,]+) \|$", card, re.MULTILINE)
    learned = json.loads((folder / "proxy_disturbed/mixture.json").read_text())["domains"]
    order = [*sorted(learned, key=lambda name: -learned[name]), "x"]
    assert seen == [(name, f"{learned[name]:.4f}" if name in learned else "-", "2,304") for name in order]
    assert "this model is the proxy of a DoGE run, made to learn domain weights; those above are their mean" in card
    assert "deepspeed doge_ds/train_proxy.py --config run.json\n" in card
    (embedded,) = re.findall(r"```json\n(.*?)```", card, re.DOTALL)
    assert json.loads(embedded) == json.loads((folder / "proxy_disturbed/config.json").read_text())
    tokenizer, model = (kind.from_pretrained(folder / "proxy_hf") for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert (len(tokenizer), model.config.vocab_size, model.config.doge_ds_sequence_length) == (64, 64, 16)


def test_lm_eval_loads_an_exported_folder_and_scores_as_transformers_does(folder: Path) -> None:
    exported = str(folder / "base_undisturbed/hf")
    text = " ".join(f"w{number}" for number in (5, 9, 9, 20, 1, 63, 7))
    scorer = HFLM(pretrained=exported, device="cpu", batch_size=1)
    ((found, _),) = scorer.loglikelihood([Instance("loglikelihood", {}, ("w3 w8", f" {text}"), 0)])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported).eval(), AutoTokenizer.from_pretrained(exported)
    ids = tokenizer(f"w3 w8 {text}", return_tensors="pt").input_ids
    with torch.no_grad():
        likelihoods = model(input_ids=ids).logits[0].log_softmax(-1)
    wanted = sum(float(likelihoods[place - 1, ids[0, place]]) for place in range(2, ids.shape[1]))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert ids.shape[1] == 9


def test_gradient_checkpointing_changes_nothing_under_zero3_with_tied_weights_and_dropout(engines: dict) -> None:
    plain, checkpointed = engines["plain_steps"], engines["checkpointed_steps"]
    assert checkpointed["losses"] == plain["losses"]
    assert len(set(plain["losses"])) == 4
    assert (plain["times_computed"], checkpointed["times_computed"]) == (4, 8)


def test_measuring_held_out_text_changes_no_bit_under_zero3_with_dropout(engines: dict) -> None:
    plain, evaluated = engines["plain_steps"], engines["evaluated_steps"]
    assert evaluated["losses"] == plain["losses"]
    assert evaluated["parameters"] == plain["parameters"]
    assert [set(found) for found in evaluated["held_out"]] == [
        {f"held_out_log_perplexity{ending}" for ending in ("", "/a", "/b")}
    ] * 4
    assert len({found["held_out_log_perplexity/a"] for found in evaluated["held_out"]}) == 4


def test_parameters_and_optimizer_kept_in_host_memory_change_nothing(engines: dict) -> None:
    plain, offloaded = engines["plain_steps"], engines["offloaded_steps"]
    assert offloaded["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert (plain["offloaded"], offloaded["offloaded"]) == ([False, False], [True, True])


def test_a_run_can_start_from_a_hugging_face_folder_under_zero3(folder: Path, engines: dict) -> None:
    saved = load_file(folder / "base_undisturbed/hf/model.safetensors")
    assert len(engines["started_from"]) == len(saved)  # the output layer is tied
    for name, (mean, deviation) in engines["started_from"].items():
        assert mean == pytest.approx(float(saved[name].mean()), rel=1e-5, abs=1e-7)
        assert deviation == pytest.approx(float(saved[name].std()), rel=1e-5)
    assert all(engines["is_partitioned"])


def test_the_exported_folder_has_its_tokenizer_and_is_measured_on_all_domains(folder: Path) -> None:
    exported = folder / "base_undisturbed/hf"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert (len(tokenizer), tokenizer.eos_token_id) == (64, 0)
    command = [sys.executable, "eval/run.py", "--model", str(exported), "--data", str(folder / "store")]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((exported / "results.json").read_text())
    assert results["sequence_length"] == 16
    domains = results["perplexity"]["domains"]
    assert {name: domain["tokens"] for name, domain in domains.items()} == dict.fromkeys("abcx", 1500)
    logs = {name: domain["log_perplexity"] for name, domain in domains.items()}
    assert max(logs.values()) < 4.2  # below log 64 = 4.16 of a uniform model, or near it
    assert logs["b"] < logs["a"] - 0.2  # b was seven tenths of the mixture


def test_the_plan_is_printed_before_the_first_step(folder: Path) -> None:
    for stage, row in (("base", r"b +0\.7000 +224 +750 +0\.30"), ("proxy", r"b +0\.3333 +160 +750 +0\.21")):
        printed = (folder / f"{stage}_last_output").read_text()
        assert re.search(r"domain +weight +sequences needed +there +epochs", printed)
        assert re.search(row, printed), printed
        assert re.search(r"40/40 .*loss \d\.\d+, [\d,]+ tokens/s", printed)  # the progress line
    assert re.search(r"x +- +160 +750 +0\.21", printed)  # the target has no weight


def test_the_whole_program_gives_the_same_weights_on_one_and_two_ranks(folder: Path) -> None:
    """Target `mix`, several micro-batches a row, dropout off: loader, hook and weights together."""
    store = folder / "store"
    plain = {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "n_head": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = write_config(folder / "mix.json", store, "proxy", model=plain, doge={"target": "mix", "preset": "paper"})
    settings = ["--set", "training.steps=8", "training.micro_batch_size=2", "doge.mu=0.05"]
    found = {}
    for world_size in (1, 2):
        output = folder / f"mix{world_size}"
        ranks = Ranks(world_size, PROGRAMS["proxy"], "--config", str(config), "--output", str(output), *settings)
        statuses, printed = ranks.finish()
        assert statuses == [0] * world_size, printed
        found[world_size] = metrics_of(output)
    assert "loss/<mix>" in found[1][0]
    for one, two in zip(found[1], found[2], strict=True):
        for key in (key for key in one if key.startswith(("weight/", "loss", "mean_weight/", "gradient_norm/"))):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
    weights = [found[1][-1][f"weight/{name}"] for name in ("a", "b", "c", "x")]
    assert max(weights) - min(weights) > 0.01
