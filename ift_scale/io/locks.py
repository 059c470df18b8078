"""Locks of run folders, of parts of a run, and of cache files that are built once.

The kernel releases a lock when its process ends for any reason. On NFS, the server releases it some
time after the node disappears.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ift_scale.errors import ArtifactError, EnvironmentProblem
from ift_scale.io.files import translate_disk_errors

LOCK = ".lock"


_POLL_SECONDS, _REPORT_SECONDS, _TIMEOUT_SECONDS = 0.2, 30.0, 3600.0


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Locks `folder` for this run; raises ArtifactError if another run holds it.

    `shared`: several commands may hold it together, each working on the tasks that it has claimed.
    """
    with translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    with file:
        if not take_lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            raise ArtifactError(
                f"{folder}: another run is working in this folder ({_holder(file)}). Wait for it, "
                "stop it, or set output_dir to another folder."
            )
        _sign(file)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claims a task for the block with a lock on `path`; yields False if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        mine = take_lock(file, fcntl.LOCK_EX)
        if mine:
            _sign(file)
        yield mine


@contextmanager
def build_once(path: Path, is_built: Callable[[Path], bool] = Path.exists) -> Iterator[bool]:
    """Serialises building the cache file `path`: yields True on the one process that must build it
    in the block, and False on those that waited for it.

    The lock of a dead process is free again. While another process holds the lock, it is reported
    regularly; after an hour an ArtifactError is raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}{LOCK}").open("a+") as file:
        started = reported = time.monotonic()
        while not take_lock(file, fcntl.LOCK_EX):
            now = time.monotonic()
            if now - started > _TIMEOUT_SECONDS:
                raise ArtifactError(
                    f"{path}: waited {_TIMEOUT_SECONDS / 60:.0f} minutes for the process that "
                    f"builds it ({_holder(file)}). If that process has ended, its file system has "
                    f"not released the lock: remove {file.name} and run the same command again."
                )
            if now - reported > _REPORT_SECONDS:
                reported = now
                print(
                    f"waiting for {path.name}, which another process is building ({_holder(file)})",
                    flush=True,
                )
            time.sleep(_POLL_SECONDS)
        missing = not is_built(path)
        if missing:
            _sign(file)
        yield missing


def take_lock(file: IO[str], kind: int) -> bool:
    """Takes the lock of an open file without waiting; returns False if it is held elsewhere."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EnvironmentProblem(
            f"{file.name}: file locks do not work on this file system ({error.strerror}). Set "
            "output_dir to a file system with flock (Lustre: mounted with -o flock)."
        ) from error
    return True


def _sign(file: IO[str]) -> None:
    """Writes this process's identity into a lock file."""
    file.truncate(0)
    job = f" (job {os.environ['SLURM_JOB_ID']})" if "SLURM_JOB_ID" in os.environ else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"pid {os.getpid()} on {socket.gethostname()}{job} since {since}")
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "holder not recorded yet"
