"""Locks of run folders, of parts of a run, and of cache files that are built once.

The kernel frees a lock when its process ends, however it ends. Over NFS the server frees it some time after a node
has gone.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ift_scale.errors import ArtifactError, EnvironmentProblem
from ift_scale.io.files import told_when_full

LOCK = ".lock"


_LOOK_SECONDS, _TELL_SECONDS, _GIVE_UP_SECONDS = 0.2, 30.0, 3600.0


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
                print(
                    f"waiting for {path.name}, which another process is making ({_holder(file)})",
                    flush=True,
                )
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
    file.write(
        f"pid {os.getpid()} on {socket.gethostname()}{job} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    )
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "which has not signed yet"
