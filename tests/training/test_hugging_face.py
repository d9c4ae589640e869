"""A checkpoint as a Hugging Face folder: what cannot be read, does not fit or cannot be written is said in one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from doge_ds.config_sections import BaseTrainingConfig
from doge_ds.errors import RunError
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import start_engine
from doge_ds.training.hugging_face import export_checkpoint
from doge_ds.training.launch import Ranks
from doge_ds.training.model import build_model, model_config

ROOT = Path(__file__).resolve().parents[2]
TOKENS = torch.arange(22).view(2, 11)
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def shape(**changes: int) -> Any:
    return model_config({"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, **changes}, 50, 3, 12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Path:
    """A checkpoint of one rank under ZeRO-3."""
    training = BaseTrainingConfig(steps=2, global_batch_size=4, learning_rate=0.1)
    ds_config = json.loads((ROOT / "ds_configs/zero3_cpu.json").read_text())
    config = complete_deepspeed_config(ds_config, training, 3, 4, 1, Ranks(rank=0, world_size=1, local_rank=0))
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        engine = start_engine(build_model(shape(), config, training, None), config, training)
        Checkpoints(folder, training).save(engine, 1, {})
        engine.eval()
        with torch.no_grad():
            torch.save(engine(input_ids=TOKENS).logits, folder / "logits.pt")
        engine.destroy()
    return folder / "step00000001"


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoints" / whole.name))


def export(checkpoint: Path, output: Path, **changes: int) -> None:
    tokenizer = output.with_name("tokenizer")
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    export_checkpoint(checkpoint, shape(**changes), {"doge_ds_sequence_length": 12}, tokenizer, "card", output)


def refusal(checkpoint: Path, output: Path, **changes: int) -> str:
    with pytest.raises(RunError) as caught:
        export(checkpoint, output, **changes)
    assert not output.exists()
    assert not output.with_name(f"{output.name}.tmp").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("is_watched", [False, True])
def test_a_log_file_gets_no_bars_and_a_terminal_does(
    checkpoint: Path,
    tmp_path: Path,
    is_watched: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_watched)
    export(checkpoint, tmp_path / "hf")
    printed = capsys.readouterr()
    for bar in ("Loading checkpoint shards", "Gathering sharded weights"):
        assert (bar in printed.err) == is_watched
    assert printed.out == ""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.doge_ds_sequence_length == 12
    assert (tmp_path / "hf/README.md").read_text() == "card"
    assert (tmp_path / "hf/tokenizer.json").exists()


def test_logits_are_the_engines_however_small_the_files(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    wanted = torch.load(whole.parent / "logits.pt", weights_only=True)
    for size in (None, "10KB"):
        output = tmp_path / str(size)
        export_checkpoint(whole, shape(), {}, tmp_path / "tokenizer", "card", output, max_shard_size=size)
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(output).eval()(input_ids=TOKENS).logits
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    assert [path.name for path in (tmp_path / "None").glob("*.safetensors*")] == ["model.safetensors"]
    names = {path.name for path in output.glob("*.safetensors")}
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == names
    assert len(names) > 2
    assert all(path.stat().st_size < 20_000 for path in output.glob("*.safetensors"))


def test_a_checkpoint_without_its_files_or_with_damaged_ones(checkpoint: Path, tmp_path: Path) -> None:
    content = (checkpoint / OPTIMIZER).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no tensors\n"):
        (checkpoint / OPTIMIZER).write_bytes(damaged)
        assert refusal(checkpoint, tmp_path / "hf").startswith(f"{checkpoint}: cannot be read (")
    (checkpoint / OPTIMIZER).unlink()
    assert "can't find *_optim_states.pt" in refusal(checkpoint, tmp_path / "hf")
    shutil.rmtree(checkpoint)
    assert "doesn't exist); restore its files" in refusal(checkpoint, tmp_path / "hf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_embd": 24}, "(size mismatch for "),
        ({"n_layer": 3}, ": 12 tensors are missing, 0 too many; transformer.h.2."),
        ({"n_layer": 1}, ": 0 tensors are missing, 12 too many; transformer.h.1."),
    ],
)
def test_a_checkpoint_of_another_model(checkpoint: Path, tmp_path: Path, changes: dict[str, int], words: str) -> None:
    message = refusal(checkpoint, tmp_path / "hf", **changes)
    assert message.startswith(f"{checkpoint}: does not fit the model of config.json")
    assert words in message


def test_an_output_that_cannot_be_written_leaves_the_old_one(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/old").write_text("")
    tokenizer = tmp_path / "nowhere"
    with pytest.raises(RunError, match=r"hf: cannot be written \(.*No such file or directory: .*nowhere"):
        export_checkpoint(checkpoint, shape(), {}, tokenizer, "card", tmp_path / "hf")
    assert [path.name for path in tmp_path.glob("hf*/*")] == ["old"]


@pytest.mark.parametrize("umask", [0o027, 0o002, 0o077], ids=oct)
def test_the_folder_has_the_rights_that_the_user_gives_new_files(checkpoint: Path, tmp_path: Path, umask: int) -> None:
    """safetensors gives its files to the owner alone; a store may be one that nobody writes."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "tokenizer.json").chmod(0o400)
    tokenizer.chmod(0o500)
    before = os.umask(umask)
    try:
        export_checkpoint(checkpoint, shape(), {}, tokenizer, "card", tmp_path / "hf", max_shard_size="10KB")
    finally:
        os.umask(before)
    files = list((tmp_path / "hf").iterdir())
    assert len([file for file in files if file.suffix == ".safetensors"]) > 1
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(0o666 & ~umask)}
    assert oct((tmp_path / "hf").stat().st_mode & 0o777) == oct(0o777 & ~umask)
