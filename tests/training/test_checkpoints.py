"""Checkpoints of a real engine: damaged ones are passed over, a full disk costs nothing but the save."""

import json
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import pytest
import torch

from doge_ds.config_sections import BaseTrainingConfig
from doge_ds.errors import RunError, SaveError
from doge_ds.training.checkpoint_files import choose_checkpoint
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import start_engine
from doge_ds.training.launch import Ranks
from doge_ds.training.model import build_model, model_config, sequence_losses
from tests.training.conftest import fill

ROOT = Path(__file__).resolve().parents[2]
TRAINING = BaseTrainingConfig(
    steps=25, global_batch_size=4, learning_rate=0.01, checkpoint_every=10, keep_checkpoints=2, seed=1
)

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(params=["zero2_cpu", "zero3_cpu"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[deepspeed.DeepSpeedEngine]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    values = json.loads((ROOT / f"ds_configs/{request.param}.json").read_text())
    stage = values["zero_optimization"]["stage"]
    config = complete_deepspeed_config(values, TRAINING, stage, 4, 1, Ranks(rank=0, world_size=1, local_rank=0))
    shape = model_config({"model_type": "gpt2", "n_layer": 1, "n_embd": 48, "n_head": 2}, 200, 3, 12)
    torch.manual_seed(1)
    engine = start_engine(build_model(shape, config, TRAINING, None), config, TRAINING)
    yield engine
    engine.destroy()


def train(engine: deepspeed.DeepSpeedEngine, seed: int) -> float:
    """One step; its loss."""
    tokens = torch.randint(200, (4, 12), generator=torch.Generator().manual_seed(seed))
    loss = sequence_losses(engine, tokens).mean()
    engine.backward(loss)
    engine.step()
    return float(loss)


def flip_a_bit(folder: Path) -> Path:
    """In the middle of the largest file of a checkpoint."""
    file = max(folder.glob("*.pt"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def test_without_a_checkpoint_there_is_nothing_to_load(engine: deepspeed.DeepSpeedEngine, tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, TRAINING).load(engine) is None


def test_due_every_ten_steps_and_after_the_last() -> None:
    checkpoints = Checkpoints(Path("unused"), TRAINING)
    assert [step + 1 for step in range(25) if checkpoints.is_due(step)] == [10, 20, 25]


def test_a_damaged_newest_one_is_set_aside_and_the_one_before_continues_bit_for_bit(
    engine: deepspeed.DeepSpeedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", TRAINING)
    train(engine, 0)
    checkpoints.save(engine, 10, {"note": "ten"})
    losses = [train(engine, seed) for seed in (1, 2, 3)]
    checkpoints.save(engine, 20, {"note": "twenty"})
    assert checkpoints.steps_done == 20
    file = flip_a_bit(tmp_path / "run/checkpoints/step00000020")
    state = checkpoints.load(engine)
    assert state == {"step": 10, "note": "ten"}
    printed = capsys.readouterr().err
    assert f"step00000020 is not as it was written: {file.name} is damaged in " in printed
    assert "warning: set aside as " in printed
    assert (tmp_path / "run/checkpoints/step00000020.broken").is_dir()
    assert [train(engine, seed) for seed in (1, 2, 3)] == losses
    checkpoints.save(engine, 20, {"note": "again"})
    assert checkpoints.load(engine) == {"step": 20, "note": "again"}
    scripts = [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path.suffix == ".py"]
    assert scripts == []  # DeepSpeed's; `doge-ds export` is the way


def test_where_all_are_damaged_nothing_is_started_over(engine: deepspeed.DeepSpeedEngine, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", TRAINING)
    for step in (10, 20):
        checkpoints.save(engine, step, {})
        flip_a_bit(tmp_path / f"run/checkpoints/step{step:08d}")
    with pytest.raises(RunError, match=r"no checkpoint that is whole: step00000010.broken, step00000020.broken; rest"):
        checkpoints.load(engine)
    assert checkpoints.describe() == "there is no checkpoint that is whole"


def test_a_checkpoint_that_this_node_does_not_see_is_not_passed_over(
    engine: deepspeed.DeepSpeedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where rank 0 sees a newer one than another rank: to load different ones would mix two runs."""
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", TRAINING)
    checkpoints.save(engine, 10, {})
    monkeypatch.setattr("doge_ds.training.checkpoints.SECONDS_TO_APPEAR", 0.0)
    monkeypatch.setattr("doge_ds.training.checkpoints.read_checkpoint", lambda folder: "is not there")
    with pytest.raises(RunError, match=r"step00000010 on \S+: is not there, while rank 0 sees all of it; all nodes"):
        checkpoints.load(engine)


def test_an_old_checkpoint_that_cannot_be_deleted_is_no_failed_save(
    engine: deepspeed.DeepSpeedEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(13, "Permission denied", "step00000001")

    monkeypatch.setattr("doge_ds.training.checkpoints.prune", refuse)
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", TRAINING)
    checkpoints.save(engine, 10, {})
    assert checkpoints.steps_done == 10
    printed = capsys.readouterr().err
    assert "warning: an old checkpoint could not be deleted (step00000001: Permission denied)" in printed


def test_a_full_disk_ends_the_save_and_leaves_the_last_good_one_and_training_able_to_go_on(
    engine: deepspeed.DeepSpeedEngine, small_disk: Path
) -> None:
    checkpoints = Checkpoints(small_disk / "run/checkpoints", TRAINING)
    train(engine, 0)
    checkpoints.save(engine, 10, {})
    losses = [train(engine, 1)]
    filler = fill(small_disk)
    with pytest.raises(SaveError) as caught:
        checkpoints.save(engine, 20, {})
    message = str(caught.value)
    assert "the checkpoint of step 20 could not be written (" in message
    assert "No space left on device" in message
    assert message.endswith(
        f"make room or mend it; the last good checkpoint is {small_disk}/run/checkpoints/step00000010"
    )
    assert caught.value.exit_status == 1
    assert [path.name for path in (small_disk / "run/checkpoints").glob("step*")] == ["step00000010"]
    losses.append(train(engine, 2))
    filler.unlink()
    checkpoints.save(engine, 20, {})
    assert checkpoints.steps_done == 20
    (small_disk / "run/checkpoints/latest").write_text("step00000010")
    assert checkpoints.load(engine) == {"step": 10}
    assert [train(engine, seed) for seed in (1, 2)] == losses


def test_metrics_that_are_not_on_disk_speak_against_a_checkpoint(
    engine: deepspeed.DeepSpeedEngine, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", TRAINING)
    with pytest.raises(SaveError, match=r"could not be written \(metrics: full\); .*no checkpoint before it"):
        checkpoints.save(engine, 10, {}, problem="metrics: full")
    assert choose_checkpoint(tmp_path / "checkpoints") == (None, [])


def test_only_what_is_safe_is_loaded(engine: deepspeed.DeepSpeedEngine, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", TRAINING)
    checkpoints.save(engine, 10, {})
    (tmp_path / "run/checkpoints/step00000010/whole.json").chmod(0o666)
    with pytest.raises(RunError, match="may be written by everybody"):
        checkpoints.load(engine)
