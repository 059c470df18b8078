"""Digests of files, cached between runs.

A digest is cached in the user's cache folder under the file's path, size, modification and change
times, and inode. The change time (ctime) detects a file that was edited in place and then given its
old modification time, as `rsync --times` and `cp --preserve` do.

The cache has one small file per cached digest, which is replaced atomically. If several processes
or ranks need the same digest, one hashes the file while the others wait. An unreadable entry or a
read-only cache folder only costs time: the file is hashed again.
"""

import fcntl
import hashlib
import json
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ift_scale.errors import DataError, Place

# Large enough to keep all cores busy, small enough to stay in the processor's cache.
_CHUNK_BYTES = 4 << 20
# File systems record changes with a granularity of up to 2 s (FAT). A file modified within that
# time before hashing could change again under the same stamp, so its digest is not cached.
_STAMP_RESOLUTION_NS = 2_000_000_000

Stamp = list[int]
Algorithm = Literal["blake3", "sha256"]
_PREFIXES: dict[Algorithm, str] = {"blake3": "blake3-", "sha256": ""}


def digest(path: Path, algorithm: Algorithm) -> str:
    """Returns the digest of the whole file, from the cache if the file is unchanged.

    `sha256`: hexadecimal. `blake3`: `blake3-` and hexadecimal, computed on all cores. Raises
    DataError if the file changes while it is read.
    """
    started = time.time_ns()
    with path.open("rb", buffering=0) as file:
        # On NFS, opening a file requests its current attributes from the server.
        stamp = _stamp(os.fstat(file.fileno()))
        entry = _entry(path, stamp)
        known = _recall(entry, path, stamp, algorithm)
        if known is not None:
            return known
        with _exclusive(entry):
            known = _recall(
                entry, path, stamp, algorithm
            )  # another process may have hashed it meanwhile
            if known is not None:
                return known
            hasher = _blake3 if algorithm == "blake3" else _sha256
            computed = hasher(file.fileno())
            if _stamp(os.fstat(file.fileno())) != stamp:
                remedy = "Wait until it is complete, then run the command again"
                raise DataError(Place(path), "changed while it was read", remedy)
            if started - max(stamp[1:3]) >= _STAMP_RESOLUTION_NS:
                _remember(entry, path, stamp, computed)
    return computed


def folder(name: str = "digests") -> Path | None:
    """Returns a cache's folder, `ift-scale/NAME` in $XDG_CACHE_HOME or ~/.cache.

    None for users without a home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification requires relative paths to be ignored
        try:
            base = Path("~/.cache").expanduser()
        except RuntimeError:
            return None
    return base / "ift-scale" / name


def _blake3(descriptor: int) -> str:
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    _feed(hasher, descriptor)
    return _PREFIXES["blake3"] + hasher.hexdigest()


def _sha256(descriptor: int) -> str:
    hasher = hashlib.sha256()
    _feed(hasher, descriptor)
    return hasher.hexdigest()


def _feed(hasher: Any, descriptor: int) -> None:
    # Not a map of the file: truncating it on a network drive would kill the process. The buffer is
    # a map of its own, because a thread's heap would keep memory of this size.
    with mmap.mmap(-1, _CHUNK_BYTES) as buffer, memoryview(buffer) as view:
        while count := os.readv(descriptor, [buffer]):
            with view[:count] as part:
                hasher.update(part)


def _stamp(status: os.stat_result) -> Stamp:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _entry(path: Path, stamp: Stamp) -> Path | None:
    # The inode separates nodes that share a cache but have different files under the same path.
    name = hashlib.sha256(os.fsencode(path.resolve()) + str(stamp[-1]).encode()).hexdigest()
    cache = folder()
    return None if cache is None else cache / f"{name[:32]}.json"


@contextmanager
def _exclusive(entry: Path | None) -> Iterator[None]:
    """Waits until no other process hashes this file. Continues at once if locking is impossible."""
    with ExitStack() as stack:
        if entry is not None:
            with suppress(OSError):
                entry.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(entry.with_suffix(".lock").open("ab"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recall(entry: Path | None, path: Path, stamp: Stamp, algorithm: Algorithm) -> str | None:
    if entry is None:
        return None
    try:
        content = json.loads(entry.read_bytes())
        is_current = (content["path"], content["stamp"]) == (str(path.resolve()), stamp)
        known = content["digest"] if is_current else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    form = re.escape(_PREFIXES[algorithm]) + "[0-9a-f]{64}"
    return known if isinstance(known, str) and re.fullmatch(form, known) else None


def _remember(entry: Path | None, path: Path, stamp: Stamp, computed: str) -> None:
    if entry is None:
        return
    content = json.dumps({"path": str(path.resolve()), "stamp": stamp, "digest": computed})
    temporary = entry.with_name(
        f".{entry.name}-{os.uname().nodename}-{os.getpid()}-{time.monotonic_ns()}"
    )
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(content, encoding="ascii")
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
