"""Keeps the weights of an arm's best measurement (`kept`) while the arm trains.

The previous best is removed only after the new one is complete, so a killed run keeps its best
weights. If such a run resumes before the best step, it repeats steps whose weights are kept
already: the same arm, data and random numbers. It then replaces them only by better ones.
"""

import shutil
from pathlib import Path

from ift_scale.train.engine import kept as kept_models
from ift_scale.train.engine.checkpoint_manifest import folder_of
from ift_scale.train.engine.kept import KeptModel, Write
from ift_scale.train.job import ArmJob
from ift_scale.train.launch.control import Control

PREFIX = "best-"
RECORD = "best.json"


class KeptBest(KeptModel):
    """Contents of best.json: a kept model and its loss."""

    loss: float


class BestWeights:
    """The best weights of an arm so far; every rank must make the same calls.

    `write` exports the model as it is.
    """

    def __init__(
        self,
        arm: ArmJob,
        control: Control,
        is_rank_zero: bool,
        write: Write,
    ):
        self._folder, self._key = folder_of(Path(arm.folder)), arm.key
        self._control, self._is_rank_zero, self._write = control, is_rank_zero, write
        self.kept = self._from_rank_zero(self._read() if is_rank_zero else None)

    @property
    def step(self) -> int | None:
        """The step of the best measurement, None before the first."""
        return None if self.kept is None else self.kept.step

    @property
    def seconds(self) -> float:
        """The time that exports took so far."""
        return 0.0 if self.kept is None else self.kept.seconds

    def _from_rank_zero(self, kept: KeptBest | None) -> KeptBest | None:
        chosen = self._control.gather(kept and kept.model_dump(mode="json"))[0]
        return None if chosen is None else KeptBest.model_validate(chosen)

    def _read(self) -> KeptBest | None:
        """Returns the newest record of this arm; removes what belongs to another key."""
        found = []
        for path in self._folder.glob(f"{PREFIX}*"):
            kept = kept_models.read(path / RECORD, KeptBest)
            if kept is None or kept.key != self._key:
                shutil.rmtree(path)
            else:
                found.append(kept)
        # Two remain if a run was killed after writing the newer one, which has the lower loss.
        return min(found, key=lambda kept: (kept.loss, kept.step), default=None)

    def offer(self, step: int, loss: float) -> None:
        """Keep the current weights if `loss` is the lowest so far.

        Raises EnvironmentProblem if the disk is full; the previous weights are kept.
        """
        if self.kept is not None and loss >= self.kept.loss:
            return
        kept = None
        if self._is_rank_zero:
            kept = self._save(step, loss)
        else:
            self._write(None)
        self.kept = self._from_rank_zero(kept)

    def _save(self, step: int, loss: float) -> KeptBest:
        path = self._path(step)
        record = KeptBest(key=self._key, step=step, seconds=self.seconds, loss=loss)
        kept = kept_models.save(path / RECORD, record, self._write)
        for other in self._folder.glob(f"{PREFIX}*"):
            if other != path:
                shutil.rmtree(other)
        return kept

    def _path(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step}"

    def publish(self, folder: Path) -> None:
        """Link the kept model's files to `folder`, on rank 0; see `kept.publish`."""
        assert self.kept is not None
        kept_models.publish(self._path(self.kept.step), self.kept, folder)
