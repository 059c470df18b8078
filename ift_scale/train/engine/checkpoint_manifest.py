"""The manifest of an arm's checkpoint, and the choice of the checkpoint to resume from.

    train/.checkpoints/ARM/step-12/
        manifest.json, metrics.jsonl (the steps so far), state/ (DeepSpeed's files)

The manifest is written last and lists every file with its size and digest. A file whose content
is not that of its digest is never loaded. The manifest contains the arm's key, which
depends on the base model, the set and every setting that changes the result of training. Settings
that do not (number of ranks, ZeRO stage) may differ when an arm resumes.
"""

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ift_scale.errors import ArtifactError, DataError
from ift_scale.io import text_file
from ift_scale.io.manifests import MANIFEST, file_digests
from ift_scale.io.progress import say
from ift_scale.train.job import ArmJob

FOLDER = ".checkpoints"
PREFIX = "step-"
DAMAGED = "damaged-"


class Progress(BaseModel):
    """Progress of an arm: `step` optimizer steps in `seconds`, resumed `resumed` times.

    `bad_steps`: steps skipped because of a non-finite gradient; `bad_lines`: their examples' lines.
    """

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    seconds: float = 0.0
    resumed: int = 0
    bad_steps: int = 0
    bad_lines: list[int] = []


class CheckpointManifest(BaseModel):
    """Contents of manifest.json. `files`: sizes in bytes. `digests`: of old checkpoints, none."""

    model_config = ConfigDict(extra="forbid")

    progress: Progress
    key: str
    inputs: dict[str, str]
    zero_stage: int
    offload: str
    world_size: int
    optimizer: str = ""
    """The AdamW class of the states (`zero_config.optimizer_name`); empty in old checkpoints."""
    versions: dict[str, str]
    files: dict[str, int]
    digests: dict[str, str] = {}


def folder_of(artifact: Path) -> Path:
    """Returns the folder of the checkpoints of the arm that will become `artifact`."""
    return artifact.parent / FOLDER / artifact.name


def complete(folder: Path) -> list[tuple[Path, CheckpointManifest]]:
    """Returns the checkpoints of which no file is missing or truncated, oldest first."""
    checkpoints = []
    for path in folder.glob(f"{PREFIX}*"):
        saved = _read(path)
        if saved is not None and all((path / name).is_file() for name in saved.files):
            sizes = {name: (path / name).stat().st_size for name in saved.files}
            if sizes == saved.files:
                checkpoints.append((path, saved))
    return sorted(checkpoints, key=lambda pair: pair[1].progress.step)


def _read(path: Path) -> CheckpointManifest | None:
    try:
        content = text_file.read_object(path / MANIFEST, "")
        return CheckpointManifest.model_validate(content, strict=True)
    except (DataError, ValidationError):
        return None


def _damaged(path: Path, saved: CheckpointManifest) -> str | None:
    """Returns the name of a file whose content is not that of its digest, or None."""
    names = list(saved.digests)
    found = file_digests([path / name for name in names])
    changed = (n for n, digest in zip(names, found, strict=True) if digest != saved.digests[n])
    return next(changed, None)


def latest(arm: ArmJob) -> tuple[Path, CheckpointManifest] | None:
    """Returns the newest complete and undamaged checkpoint of the arm, or None if it has none.

    Damaged ones that are newer are reported and renamed, so that they are not found again. Raises
    ArtifactError if all are damaged, or if the checkpoint was made with another model, set or
    settings.
    """
    checkpoints = complete(folder_of(Path(arm.folder)))
    if not checkpoints:
        return None
    for path, saved in reversed(checkpoints):
        damaged = _damaged(path, saved)
        if damaged is None:
            break
        problem = f"{path / damaged}: damaged, its content is not what was saved"
        if path == checkpoints[0][0]:
            raise ArtifactError(
                f"{problem}, and no earlier checkpoint exists. Restore the file, or remove "
                f"{path.parent} to restart {arm.arm.name}."
            )
        aside = path.with_name(f"{DAMAGED}{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        say(f"train: {problem}; {arm.arm.name} resumes from an earlier checkpoint")
    if saved.key == arm.key:
        return path, saved
    names = {"model": "base model", "set": "training set"}
    changed = [
        text for name, text in names.items() if saved.inputs.get(name) != arm.inputs.get(name)
    ]
    difference = " and ".join(f"another {text}" for text in changed) or "other settings"
    raise ArtifactError(
        f"{path}: a checkpoint with {difference}, so {arm.arm.name} cannot resume from it."
        f" Undo the change to resume, or remove {path.parent} to restart the arm."
    )
