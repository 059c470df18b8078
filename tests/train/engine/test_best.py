"""The kept best weights: replaced by better ones only, whole after a kill, of one key."""

from pathlib import Path
from typing import Any

import pytest

from ift_scale.errors import ArtifactError
from ift_scale.train.engine.best import BestWeights
from tests.train.alone import Alone, arm_in


class _Killed(Exception):
    pass


class _Writer:
    """Writes a folder of two files; fails halfway if `fails`."""

    def __init__(self) -> None:
        self.calls, self.fails = 0, False

    def __call__(self, folder: Path | None) -> int:
        assert folder is not None
        self.calls += 1
        (folder / "code").mkdir(parents=True)
        (folder / "weights").write_text(f"weights {self.calls}")
        if self.fails:
            raise _Killed
        (folder / "code" / "model.py").write_text("code")
        return 100 + self.calls


def _best(folder: Path, write: Any, key: str = "key") -> BestWeights:
    control: Any = Alone()
    return BestWeights(arm_in(folder, key), control, is_rank_zero=True, write=write)


def test_only_better_weights_replace_it(tmp_path: Path) -> None:
    write = _Writer()
    best = _best(tmp_path, write)
    assert best.step is None and best.seconds == 0
    for step, loss in ((2, 1.0), (4, 1.0), (6, 0.5), (8, 0.7)):
        best.offer(step, loss)
    assert (best.step, write.calls) == (6, 2) and best.seconds > 0
    (kept,) = (tmp_path / "train" / ".checkpoints" / "d").iterdir()
    assert kept.name == "best-6"
    best.publish(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "weights 2"
    assert (tmp_path / "model" / "code" / "model.py").is_file()
    assert (kept / "model" / "weights").is_file()  # a crash before the arm is published loses none


def test_a_killed_run_keeps_the_best_so_far(tmp_path: Path) -> None:
    write = _Writer()
    _best(tmp_path, write).offer(2, 1.0)
    write.fails = True
    with pytest.raises(_Killed):
        _best(tmp_path, write).offer(4, 0.5)
    write.fails = False
    resumed = _best(tmp_path, write)
    assert resumed.kept is not None
    assert (resumed.step, resumed.kept.loss, resumed.kept.peak_bytes) == (2, 1.0, 101)
    # The resumed run repeats the measurement that it had kept, and then finds a better one.
    resumed.offer(2, 1.0)
    assert write.calls == 2
    resumed.offer(4, 0.5)
    assert _best(tmp_path, write).step == 4


def test_weights_of_other_settings_are_removed(tmp_path: Path) -> None:
    write = _Writer()
    _best(tmp_path, write).offer(2, 1.0)
    other = _best(tmp_path, write, key="other key")
    assert other.step is None
    assert not list((tmp_path / "train" / ".checkpoints" / "d").iterdir())


def test_damaged_weights_are_not_published(tmp_path: Path) -> None:
    _best(tmp_path, _Writer()).offer(2, 1.0)
    best = _best(tmp_path, _Writer())
    path = tmp_path / "train" / ".checkpoints" / "d" / "best-2" / "model" / "weights"
    path.write_text("weights 2")
    with pytest.raises(ArtifactError, match=f"^{path}: damaged, .* to train the arm again"):
        best.publish(tmp_path / "model")
    path.write_text("weights 1")
    best.publish(tmp_path / "model")
    assert (tmp_path / "model" / "weights").samefile(path)
