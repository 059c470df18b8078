"""Keeps an arm's weights after the epochs of `train.export_epochs`, while the arm trains.

Exported next to the checkpoints (`engine.kept`), and linked into the arm's folder when it is
finished: ARM/epochs/1/model/. An epoch is exported before a checkpoint of its last step is saved,
so an arm that resumes has every epoch before its checkpoint.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ift_scale.errors import ArtifactError
from ift_scale.ranks import activity
from ift_scale.train.engine import kept
from ift_scale.train.engine.checkpoint_manifest import folder_of
from ift_scale.train.engine.deepspeed import TrainEngine
from ift_scale.train.engine.kept import KeptModel, Write
from ift_scale.train.job import ArmJob
from ift_scale.train.launch.control import Control
from ift_scale.train.measurement.evaluator import PeriodicEvaluator

_RECORD = "epoch.json"


class EpochExports(PeriodicEvaluator):
    """The exports of an arm's epochs, between its steps as measurements are.

    Every rank must make the same calls. `write` exports the model as it is.
    """

    NAME = "export_epochs"

    def __init__(
        self, arm: ArmJob, engine: TrainEngine, control: Control, num_steps: int, write: Write
    ):
        super().__init__(0, None, engine, control, num_steps, None)
        self._arm, self._write = arm, write
        steps = num_steps // engine.config.epochs
        self._epochs = {epoch * steps: epoch for epoch in engine.config.export_epochs}

    def after(self, step: int) -> Mapping[str, Any]:
        """Export the model if `step` ends one of the epochs, unless an earlier run has."""
        if step not in self._epochs:
            return {}
        file = self._folder_of(self._epochs[step]) / _RECORD
        is_rank_zero = self._engine.ranks.is_rank_zero
        activity.begin(f"exporting {file.parent.name}", f"the disk of {file.parent}", slow=True)
        is_there = self._read(file) is not None if is_rank_zero else None
        if self._control.gather(is_there)[0]:
            return {}
        if is_rank_zero:
            saved = kept.save(file, KeptModel(key=self._arm.key, step=step), self._write)
            self.seconds += saved.seconds
        else:
            self._write(None)
        self._control.barrier()
        return {}

    def times(self) -> dict[str, float]:
        """Returns the seconds of the exports of this command; empty without any epoch."""
        return super().times() if self._epochs else {}

    def publish(self, artifact: Path) -> None:
        """Link the models of all epochs to the arm's folder, on rank 0.

        Raises ArtifactError if one is missing or damaged.
        """
        for epoch in self._epochs.values():
            folder = self._folder_of(epoch)
            record = self._read(folder / _RECORD)
            if record is None:
                raise ArtifactError(
                    f"{folder}: missing or damaged, but the arm has passed this epoch. Remove "
                    f"{folder.parent} to train the arm again."
                )
            kept.publish(folder, record, kept.folder_of_epoch(artifact, epoch) / kept.MODEL)

    def _folder_of(self, epoch: int) -> Path:
        return folder_of(Path(self._arm.folder)) / f"epoch-{epoch}"

    def _read(self, file: Path) -> KeptModel | None:
        """Returns the record of an epoch of this arm; removes one of another key."""
        record = kept.read(file, KeptModel)
        if record is not None and record.key == self._arm.key:
            return record
        shutil.rmtree(file.parent, ignore_errors=True)
        return None
