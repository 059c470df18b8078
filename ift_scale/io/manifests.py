"""Manifests: records of how an artifact was made, used to decide whether it is up to date.

An artifact is a folder with a `manifest.json`. It is *done* if the manifest's key equals the key
that the artifact would have now (from the settings, the inputs' digests and the stage's version)
and every file listed in it exists with its digest.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ift_scale.errors import ArtifactError, DataError, Place
from ift_scale.io import digest_cache, text_file
from ift_scale.io.files import atomic_folder, link_or_copy, write_text
from ift_scale.io.machine import git_commit, machine_name, package_versions

MANIFEST = "manifest.json"


_SHA256_BYTES = 64 << 20
# Below this size, hashing a file takes no longer than looking its digest up.
_CACHED_BYTES = 1 << 20
_FILES_AT_ONCE = 8


def _inside(name: str) -> str:
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in name or len(max(parts, key=len)) > 200:
        raise ValueError("must be the name of a file in the artifact's folder")
    return name


class Edit(BaseModel):
    """A change on purpose of a finished artifact, as `ift-scale accept` has recorded it."""

    model_config = ConfigDict(extra="forbid")

    artifact: str
    """The stage, and for stages with one artifact per arm the arm: `train/ARM`."""
    files: list[str]
    date: str
    """UTC, ISO 8601."""


class Manifest(BaseModel):
    """How an artifact was made: key, settings, inputs, files, counts and seconds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    stage: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[Annotated[str, AfterValidator(_inside)], str]
    counts: dict[str, float]
    seconds: dict[str, float]
    created: str
    commit: str | None
    versions: dict[str, str]
    machine: str
    edited: list[Edit] = []


def adopt(source: Path, folder: Path) -> None:
    """Copies a finished artifact to `folder`, with hard links if the file system has them."""
    with atomic_folder(folder) as temporary:
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source)
            if path.is_file() and (relative.name == MANIFEST or not _is_internal(relative)):
                link_or_copy(path, temporary / relative)


def digest_of(value: Any) -> str:
    """Returns the sha256 of any JSON-serialisable value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the digest of a file's whole content: sha256 up to 64 MiB, BLAKE3 above.

    Digests of files above 1 MiB are cached, see `digest_cache`. Files up to 64 MiB keep sha256
    because the manifests of finished runs use it.
    """
    text_file.refuse_unreadable(path)
    size = path.stat().st_size
    if size > _CACHED_BYTES:
        return digest_cache.digest(path, "blake3" if size > _SHA256_BYTES else "sha256")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Sequence[Path]) -> list[str]:
    """Returns the digests of several files. Several threads read them if some are large."""
    # Starting threads takes longer than hashing the files of a small artifact.
    if len(paths) < 2 or all(path.stat().st_size <= _CACHED_BYTES for path in paths):
        return [file_digest(path) for path in paths]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return list(pool.map(file_digest, paths))


def folder_digest(
    folder: Path, suffixes: tuple[str, ...] = (".json", ".safetensors", ".model", ".jinja", ".txt")
) -> str:
    """Returns the digest of a model folder: names and digests of its files except the manifest."""
    files = sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix in suffixes and p.name != MANIFEST
    )
    return digest_of(dict(zip((file.name for file in files), file_digests(files), strict=True)))


def read_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of an artifact, or None. Raises ArtifactError if it is unreadable."""
    path, remedy = folder / MANIFEST, f"Remove {folder} to recreate it"
    if not path.exists():
        return None
    try:
        manifest = Manifest.model_validate(text_file.read_object(path, remedy), strict=True)
    except DataError as error:
        raise ArtifactError(str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = Place(path, field=".".join(map(str, first["loc"])))
        problem = f"not a manifest of this version: {first['msg']}"
        raise ArtifactError(str(DataError(place, problem, remedy, first["input"]))) from error
    for field in ("config", "inputs", "files", "counts", "seconds"):
        setattr(manifest, field, _Recorded(getattr(manifest, field), path, field))
    return manifest


class _Recorded(dict[str, Any]):
    """A part of a manifest. A key that its stage always writes is missing only after an edit."""

    def __init__(self, values: dict[str, Any], path: Path, field: str):
        super().__init__(
            (name, _Recorded(value, path, f"{field}.{name}") if isinstance(value, dict) else value)
            for name, value in values.items()
        )
        self._path, self._field = path, field

    def __missing__(self, name: str) -> Any:
        place, remedy = Place(self._path, field=f"{self._field}.{name}"), "to recreate it"
        raise ArtifactError(str(DataError(place, "missing", f"Remove {self._path} {remedy}")))


def remove_merged_shards(root: Path) -> None:
    """Removes the shards of finished artifacts, which a run leaves that is killed after merging.

    They are in folders. The files beside them are the texts that writers have written, which the
    next run of the write stage finds. Only for the process that holds the lock of the run's folder.
    """
    for shards in (*root.glob("*/shards/*/"), *root.glob("*/*/shards/*/")):
        if (shards.parent.parent / MANIFEST).is_file():
            shutil.rmtree(shards, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty
                shards.parent.rmdir()


def has_key(folder: Path, key: str) -> bool:
    """True if the manifest in `folder` has this key. A quick check: its files are not read."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.key == key


def is_done(folder: Path, key: str) -> bool:
    """True if `folder` has the complete artifact described by `key`."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != key:
        return False
    paths = [folder / name for name in manifest.files]
    if not all(path.is_file() for path in paths):
        return False
    return file_digests(paths) == list(manifest.files.values())


def write_manifest(
    folder: Path,
    stage: str,
    key: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    counts: dict[str, float],
    seconds: dict[str, float],
) -> Manifest:
    """Completes an artifact: digests its files and writes the manifest as the last file."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and not _is_internal(p.relative_to(folder))
    )
    manifest = Manifest(
        stage=stage,
        key=key,
        config=config,
        inputs=inputs,
        files=dict(
            zip((str(p.relative_to(folder)) for p in files), file_digests(files), strict=True)
        ),
        counts=counts,
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_commit(),
        versions=package_versions(),
        machine=machine_name(),
    )
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def _is_internal(relative: Path) -> bool:
    return relative.name == MANIFEST or any(
        part.startswith(".") or part == "shards" for part in relative.parts
    )
