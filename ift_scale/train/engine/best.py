"""Keeps the weights of an arm's best measurement, exported, next to the arm's checkpoints.

    train/.checkpoints/ARM/best-12/
        best.json, model/ (a Hugging Face folder, as the arm's own)

An export instead of a checkpoint, because nothing is trained further from it: it is a fraction of
the size, and does not depend on ZeRO stage and number of ranks. The folder appears as a whole, and
the previous one is removed only after that, so a killed run keeps its best weights. If such a run
resumes before the best step, it repeats steps whose weights are kept already: the same arm, data
and random numbers. It then replaces them only by better ones.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ift_scale.errors import ArtifactError, DataError
from ift_scale.io import text_file
from ift_scale.io.files import atomic_folder, link_or_copy
from ift_scale.io.manifests import file_digests
from ift_scale.train.engine.checkpoint_manifest import folder_of
from ift_scale.train.job import ArmJob
from ift_scale.train.launch.control import Control

PREFIX = "best-"
MODEL = "model"
RECORD = "best.json"


class KeptBest(BaseModel):
    """Contents of best.json: the arm's key, and its loss after `step` steps.

    `peak_bytes`: memory that the export used. `seconds`: time that this arm's exports of best
    weights took so far. `digests`: of the model's files by name.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    step: int
    loss: float
    peak_bytes: int
    seconds: float
    digests: dict[str, str] = {}


class BestWeights:
    """The best weights of an arm so far; every rank must make the same calls.

    `write(folder)` exports the model as it is; folder None on all ranks but 0. It returns the
    memory used, in bytes.
    """

    def __init__(
        self,
        arm: ArmJob,
        control: Control,
        is_rank_zero: bool,
        write: Callable[[Path | None], int],
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
            try:
                kept = KeptBest.model_validate(text_file.read_object(path / RECORD, ""))
            except (DataError, ValidationError):
                kept = None
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
        started, path = time.monotonic(), self._path(step)
        with atomic_folder(path) as temporary:
            peak = self._write(temporary / MODEL)
            seconds = self.seconds + time.monotonic() - started
            files = _files(temporary / MODEL)
            kept = KeptBest(
                key=self._key,
                step=step,
                loss=loss,
                peak_bytes=peak,
                seconds=seconds,
                digests=dict(zip(map(str, files), _digests(temporary / MODEL, files), strict=True)),
            )
            (temporary / RECORD).write_text(kept.model_dump_json(indent=1), encoding="utf-8")
        for other in self._folder.glob(f"{PREFIX}*"):
            if other != path:
                shutil.rmtree(other)
        return kept

    def _path(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step}"

    def publish(self, folder: Path) -> None:
        """Link the kept model's files to `folder`, on rank 0.

        The kept folder remains: it is removed with the checkpoints, after the arm's folder exists.
        Raises ArtifactError if a file is not what was kept.
        """
        assert self.kept is not None
        source = self._path(self.kept.step) / MODEL
        files = _files(source)
        for file, digest in zip(files, _digests(source, files), strict=True):
            if digest != self.kept.digests.get(str(file), digest):
                raise ArtifactError(
                    f"{source / file}: damaged, its content is not what was saved. Restore it, or "
                    f"remove {self._folder} to train the arm again."
                )
        for file in files:
            link_or_copy(source / file, folder / file)


def _files(folder: Path) -> list[Path]:
    """Returns the files below `folder`, relative to it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path, files: list[Path]) -> list[str]:
    return file_digests([folder / file for file in files])
