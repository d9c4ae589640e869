"""Checkpoints: which one is the latest, and what is said where it is not there."""

from pathlib import Path

import pytest

from doge_ds.config import BaseTrainingConfig
from doge_ds.errors import RunError
from doge_ds.training.engine import Checkpoints

TRAINING = BaseTrainingConfig(steps=25, global_batch_size=4, learning_rate=0.1, checkpoint_every=10)


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, TRAINING).load(engine=None) is None


@pytest.mark.parametrize("pointer", ["", "step00000010"])
def test_a_pointer_to_nothing_is_refused_with_the_remedy_and_nothing_is_deleted(tmp_path: Path, pointer: str) -> None:
    (tmp_path / "latest").write_text(pointer)
    (tmp_path / "step00000005").mkdir()
    with pytest.raises(RunError, match="write the name of another folder beside it into latest"):
        Checkpoints(tmp_path, TRAINING).load(engine=None)
    assert (tmp_path / "step00000005").is_dir()


def test_checkpoints_are_due_every_ten_steps_and_after_the_last() -> None:
    checkpoints = Checkpoints(Path("unused"), TRAINING)
    assert [step + 1 for step in range(25) if checkpoints.is_due(step)] == [10, 20, 25]
