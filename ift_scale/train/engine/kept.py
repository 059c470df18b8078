"""Models that an arm exports while it trains, kept next to its checkpoints until it is finished.

    train/.checkpoints/ARM/best-12/
        best.json, model/ (a Hugging Face folder, as the arm's own)
    train/.checkpoints/ARM/epoch-1/
        epoch.json, model/

Exports instead of checkpoints, because nothing is trained further from them: they are a fraction
of the size, and do not depend on ZeRO stage and number of ranks. A folder appears as a whole.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ift_scale.errors import ArtifactError, DataError
from ift_scale.io import text_file
from ift_scale.io.files import atomic_folder, link_or_copy
from ift_scale.io.manifests import file_digests

MODEL = "model"
Write = Callable[[Path | None], int]
"""Exports the arm's model to a folder; None on all ranks but 0, which must call it too. Returns the
memory used, in bytes."""


def folder_of_epoch(artifact: Path, epoch: int) -> Path:
    """Returns the folder of an epoch's model in a trained arm's."""
    return artifact / "epochs" / str(epoch)


class KeptModel(BaseModel):
    """The record of a kept model: the arm's key, and its number of steps.

    `peak_bytes`: memory that the export used. `seconds`: time that this arm's exports took so far.
    `digests`: of the model's files by name.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    step: int
    peak_bytes: int = 0
    seconds: float = 0.0
    digests: dict[str, str] = {}


Record = TypeVar("Record", bound=KeptModel)


def read(file: Path, kind: type[Record]) -> Record | None:
    """Returns the record of a kept model; None if it is missing or damaged."""
    try:
        return kind.model_validate(text_file.read_object(file, ""))
    except (DataError, ValidationError):
        return None


def save(file: Path, record: Record, write: Write) -> Record:
    """Exports a model and writes its record to `file`, both in a new folder; on rank 0.

    Returns the record with memory, seconds (added to those it has) and digests. Raises
    EnvironmentProblem if the disk is full.
    """
    started = time.monotonic()
    with atomic_folder(file.parent) as temporary:
        peak = write(temporary / MODEL)
        seconds = record.seconds + time.monotonic() - started
        files = _files(temporary / MODEL)
        digests = dict(zip(map(str, files), _digests(temporary / MODEL, files), strict=True))
        found = {"peak_bytes": peak, "seconds": seconds, "digests": digests}
        saved = record.model_copy(update=found)
        (temporary / file.name).write_text(saved.model_dump_json(indent=1), encoding="utf-8")
    return saved


def publish(kept: Path, record: KeptModel, folder: Path) -> None:
    """Links the files of the model in the folder `kept` to `folder`, on rank 0.

    The kept folder remains: it is removed with the checkpoints, after the arm's folder exists.
    Raises ArtifactError if a file is not what was kept.
    """
    source = kept / MODEL
    files = _files(source)
    for file, digest in zip(files, _digests(source, files), strict=True):
        if digest != record.digests.get(str(file), digest):
            raise ArtifactError(
                f"{source / file}: damaged, its content is not what was saved. Restore it, or "
                f"remove {kept.parent} to train the arm again."
            )
    for file in files:
        link_or_copy(source / file, folder / file)


def _files(folder: Path) -> list[Path]:
    """Returns the files below `folder`, relative to it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path, files: list[Path]) -> list[str]:
    return file_digests([folder / file for file in files])
