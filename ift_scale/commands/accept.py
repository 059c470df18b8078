"""`ift-scale accept`: keeps edits of a finished artifact, see `io.integrity`."""

from contextlib import nullcontext
from pathlib import Path

from ift_scale.io import integrity
from ift_scale.io.locks import LOCK, locked
from ift_scale.io.progress import say


def accept_edits(folder: Path) -> None:
    """Records the changed files of the artifact `folder`, while no run works in its run's folder.

    Raises ArtifactError if it is not an artifact, if a file is missing or a run holds the folder.
    """
    run = next((parent for parent in folder.resolve().parents if (parent / LOCK).is_file()), None)
    with locked(run) if run is not None else nullcontext():
        changed = integrity.accept(folder)
    if not changed:
        say(f"{folder}: no file was changed")
    for name in changed:
        say(f"accepted: {folder / name}")
