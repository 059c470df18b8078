"""The integrity of finished artifacts: files that were changed after their stage wrote them.

In: an artifact's folder, with the digests in its manifest. A changed file is refused until it is
made again, restored, or accepted as an edit. `stage.Context` and `run_folder.Run` read through
`check`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from ift_scale.errors import ArtifactError
from ift_scale.io.files import write_text
from ift_scale.io.manifests import MANIFEST, Edit, Manifest, file_digests, read_manifest

ALL = ("*",)
_SAMPLED = "sampled-"
"""Prefix of digests of only parts of large files, in manifests of old versions."""


def check(folder: Path, patterns: Sequence[str] = ALL, complete: bool = True) -> None:
    """Compares the files of an artifact with its manifest.

    `patterns`: of the names to compare, as in a shell; `*` includes subfolders. `complete`: the
    files must exist. A folder without a manifest is not checked. Raises ArtifactError, which names
    the first changed or missing file, the stage that wrote it and the remedies.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    names = _matching(manifest, patterns)
    changed = _changed(folder, manifest, names)
    if changed:
        others = f" (and {len(changed) - 1} more files there)" if len(changed) > 1 else ""
        raise ArtifactError(
            f"{folder / changed[0]}{others}: changed after `ift-scale {manifest.stage}` wrote it. "
            "Restore it; or, to have it made again, remove it and run `ift-scale "
            f"{manifest.stage}`; or, to keep the change, run `ift-scale accept {folder}`."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if complete and missing:
        raise ArtifactError(
            f"{folder / missing[0]}: missing, although `ift-scale {manifest.stage}` wrote it. "
            f"Restore it, or run `ift-scale {manifest.stage}` to have it made again."
        )


def is_intact(folder: Path, key: str) -> bool:
    """True if `folder` has the complete artifact described by `key`.

    Raises ArtifactError if it has the artifact, but a file of it was changed.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != key:
        return False
    check(folder, complete=False)
    return all(
        (folder / name).is_file() and not digest.startswith(_SAMPLED)
        for name, digest in manifest.files.items()
    )


def accept(folder: Path) -> list[str]:
    """Records the present content of an artifact's files in its manifest, with the date.

    Returns the names of the changed files. The results of later stages that depend on them are out
    of date then. Raises ArtifactError if `folder` is not an artifact or a file of it is missing.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(
            f"{folder}: not a finished artifact, it has no {MANIFEST}. Give the folder of a stage, "
            "or of one arm of the train or evaluate stage, such as RUN/construct or RUN/train/ARM."
        )
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{folder / missing[0]}: missing, and a removed file cannot be accepted. Run "
            f"`ift-scale {manifest.stage}` to have it made again."
        )
    changed = _changed(folder, manifest, list(manifest.files))
    if changed:
        digests = file_digests([folder / name for name in changed])
        place = folder.resolve().name
        artifact = manifest.stage if place == manifest.stage else f"{manifest.stage}/{place}"
        date = datetime.now(UTC).isoformat(timespec="seconds")
        edit = Edit(artifact=artifact, files=changed, date=date)
        accepted = manifest.model_copy(
            update={
                "files": manifest.files | dict(zip(changed, digests, strict=True)),
                "edited": [*manifest.edited, edit],
            }
        )
        write_text(folder / MANIFEST, accepted.model_dump_json(indent=1))
    return changed


def _matching(manifest: Manifest, patterns: Sequence[str]) -> list[str]:
    return [name for name in manifest.files if any(fnmatchcase(name, p) for p in patterns)]


def _changed(folder: Path, manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Returns the names of files that exist with another content than the manifest's."""
    comparable = [
        name
        for name in names
        if (folder / name).is_file() and not manifest.files[name].startswith(_SAMPLED)
    ]
    found = file_digests([folder / name for name in comparable])
    return [
        name
        for name, digest in zip(comparable, found, strict=True)
        if digest != manifest.files[name]
    ]
