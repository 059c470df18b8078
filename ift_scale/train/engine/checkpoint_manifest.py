"""What lies in an arm's checkpoint folder, and which checkpoint to go on from.

    train/.checkpoints/ARM/step-12/   manifest.json, metrics.jsonl (the steps so far), state/ (DeepSpeed's)

The manifest is written last, names every file with its size, and says what the checkpoint is of: the arm's key, which holds the
base model, the set and every setting that changes what is learnt. What only says how fast or where may change: ranks, ZeRO stage.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ift_scale.errors import ArtifactError
from ift_scale.io.manifests import MANIFEST
from ift_scale.train.job import ArmJob

FOLDER = ".checkpoints"
PREFIX = "step-"


class Progress(BaseModel):
    """How far an arm is: `step` optimizer steps done in `seconds`, gone on `resumed` times; its bad steps, their lines."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    seconds: float = 0.0
    resumed: int = 0
    bad_steps: int = 0
    bad_lines: list[int] = []


class Saved(BaseModel):
    """A checkpoint's manifest. `files`: sizes in bytes."""

    model_config = ConfigDict(extra="forbid")

    progress: Progress
    key: str
    inputs: dict[str, str]
    zero_stage: int
    offload: str
    world_size: int
    optimizer: str = ""
    """Whose AdamW made the states (`zero.optimizer_name`); empty in checkpoints of earlier versions."""
    versions: dict[str, str]
    files: dict[str, int]


def folder_of(artifact: Path) -> Path:
    """Where the checkpoints of the arm that becomes `artifact` are."""
    return artifact.parent / FOLDER / artifact.name


def whole(folder: Path) -> list[tuple[Path, Saved]]:
    """An arm's checkpoints with all their files in full length, oldest first."""
    found = []
    for path in folder.glob(f"{PREFIX}*"):
        saved = _read(path)
        if saved is not None and all((path / name).is_file() for name in saved.files):
            sizes = {name: (path / name).stat().st_size for name in saved.files}
            if sizes == saved.files:
                found.append((path, saved))
    return sorted(found, key=lambda pair: pair[1].progress.step)


def _read(path: Path) -> Saved | None:
    try:
        return Saved.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def latest(arm: ArmJob) -> tuple[Path, Saved] | None:
    """The newest whole checkpoint of the arm; ArtifactError where it is of another model, set or settings."""
    found = whole(folder_of(Path(arm.folder)))
    if not found:
        return None
    path, saved = found[-1]
    if saved.key == arm.key:
        return path, saved
    names = {"model": "base model", "set": "training set"}
    changed = [
        text for name, text in names.items() if saved.inputs.get(name) != arm.inputs.get(name)
    ]
    raise ArtifactError(
        f"{path}: a checkpoint with {' and '.join(['another ' + text for text in changed]) or 'other settings'}, so "
        f"{arm.arm.name} cannot go on from it. Put back what was changed to go on, or remove {path.parent} to start the arm again."
    )
