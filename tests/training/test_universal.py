"""A checkpoint that cannot be converted for another number of ranks is said to be so, and nothing half-made stays."""

from pathlib import Path

import pytest

from doge_ds.errors import RunError
from doge_ds.training.checkpoint_files import Checkpoint
from doge_ds.training.universal import converted


@pytest.mark.usefixtures("process_group")
def test_what_deepspeed_cannot_convert_is_one_line_with_the_ranks_that_need_no_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run/checkpoints/step00000006"
    folder.mkdir(parents=True)
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"no archive")
    with pytest.raises(RunError) as caught:
        converted(Checkpoint(folder, 6, ranks=2, files=[]), rank=0)
    message = str(caught.value)
    assert f"{folder}: could not be converted for another number of ranks (" in message
    assert message.endswith("; start it on 2 ranks, which need no conversion")
    assert "\n" not in message
    assert "converts step00000006 from 2 to 1 ranks, once" in capsys.readouterr().err
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step00000006", "universal.lock"]
