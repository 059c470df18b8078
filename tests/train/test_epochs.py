"""The weights after earlier epochs: exported once, at the right steps, whole after a kill."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ift_scale.config import TrainConfig
from ift_scale.errors import ArtifactError
from ift_scale.train.engine.kept import folder_of_epoch
from ift_scale.train.epochs import EpochExports
from tests.train.alone import Alone, arm_in

NUM_STEPS = 12


class _Writer:
    """Writes the number of the step; fails halfway after `fails_at` steps."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.step, self.written, self._fails_at = 0, [], fails_at

    def __call__(self, folder: Path | None) -> int:
        assert folder is not None
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(self.step))
        if self.step == self._fails_at:
            raise KeyboardInterrupt
        self.written.append(self.step)
        return 1


def _run(
    folder: Path, write: _Writer, key: str = "key", first: int = 1, epochs: tuple[int, ...] = (1, 3)
) -> EpochExports:
    """Goes through an arm's steps from `first`, as the loop does."""
    config = TrainConfig(epochs=4, export_epochs=list(epochs))
    engine: Any = SimpleNamespace(config=config, ranks=SimpleNamespace(is_rank_zero=True))
    control: Any = Alone()
    exports = EpochExports(arm_in(folder, key), engine, control, NUM_STEPS, write)
    for write.step in range(first, NUM_STEPS + 1):
        assert exports.after(write.step) == {}
    return exports


def _published(exports: EpochExports, folder: Path) -> dict[int, str]:
    exports.publish(folder)
    return {n: (folder_of_epoch(folder, n) / "model" / "weights").read_text() for n in (1, 3)}


def test_each_epoch_is_exported_after_its_last_step(tmp_path: Path) -> None:
    write = _Writer()
    exports = _run(tmp_path, write)
    assert write.written == [3, 9]
    assert exports.times()["export_epochs"] > 0
    assert _published(exports, tmp_path / "arm") == {1: "3", 3: "9"}
    assert not _run(tmp_path, _Writer(), epochs=()).times()


def test_a_killed_arm_keeps_the_epochs_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, _Writer(fails_at=9))
    # From a checkpoint between the epochs, and from one before both of them.
    for number, (first, written) in enumerate(((5, [9]), (1, []))):
        write = _Writer()
        exports = _run(tmp_path, write, first=first)
        assert write.written == written
        assert _published(exports, tmp_path / f"arm{number}") == {1: "3", 3: "9"}


def test_epochs_of_other_settings_are_not_used(tmp_path: Path) -> None:
    _run(tmp_path, _Writer(), key="other")
    write = _Writer()
    _run(tmp_path, write)
    assert write.written == [3, 9]


def test_a_missing_or_damaged_epoch_is_reported(tmp_path: Path) -> None:
    exports = _run(tmp_path, _Writer())
    kept = tmp_path / "train" / ".checkpoints" / "d" / "epoch-3"
    (kept / "model" / "weights").write_text("8")
    with pytest.raises(ArtifactError, match=r"epoch-3/model/weights: damaged, .* train the arm ag"):
        exports.publish(tmp_path / "one")
    kept.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"epoch-3: missing or damaged, but .* train the arm a"):
        exports.publish(tmp_path / "two")
