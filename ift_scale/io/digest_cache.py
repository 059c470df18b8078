"""Digests of large files: BLAKE3 over the whole content, remembered between runs.

A digest is remembered under the user's cache folder by the file's path, size, modification and
change times, and inode. The change time (ctime) is what catches a file that was edited in place
and then given its old modification time, as `rsync --times` and `cp --preserve` do.

The cache holds one small file per remembered file, which is replaced atomically. Of several
processes or ranks that want the same digest, one hashes the file while the others wait for it. An
entry that cannot be read, or a cache folder that cannot be written, costs time only: the file is
hashed again.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ift_scale.errors import DataError, Place

# Large enough to keep all cores busy, small enough to stay in the processor's cache.
_CHUNK_BYTES = 4 << 20
# File systems stamp changes with a granularity of up to 2 s (FAT). A file changed that shortly
# before it was hashed could change again without its stamp showing it, so it is not remembered.
_SETTLED_NS = 2_000_000_000

Stamp = list[int]


def digest(path: Path) -> str:
    """`blake3-` and the BLAKE3 digest of the whole file, taken from the cache if the file is unchanged.

    Raises DataError if the file changes while it is read.
    """
    started = time.time_ns()
    with path.open("rb", buffering=0) as file:
        # Opening a file makes NFS ask the server for its current attributes.
        stamp = _stamp(os.fstat(file.fileno()))
        entry = _entry(path, stamp)
        known = _recall(entry, path, stamp)
        if known is not None:
            return known
        with _turn(entry):
            known = _recall(entry, path, stamp)  # another process may have hashed it
            if known is not None:
                return known
            found = "blake3-" + _blake3(file.fileno())
            if _stamp(os.fstat(file.fileno())) != stamp:
                remedy = "Wait until it is complete, then run the command again"
                raise DataError(Place(path), "changed while it was read", remedy)
            if started - max(stamp[1:3]) >= _SETTLED_NS:
                _remember(entry, path, stamp, found)
    return found


def folder() -> Path | None:
    """The cache's folder: `ift-scale/digests` in $XDG_CACHE_HOME or ~/.cache. None for a user without a home folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification has relative paths ignored
        try:
            base = Path("~/.cache").expanduser()
        except RuntimeError:
            return None
    return base / "ift-scale" / "digests"


def _blake3(descriptor: int) -> str:
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    # Not a memory map: a file that is cut short on a network drive would end the process.
    while count := os.readv(descriptor, [buffer]):
        hasher.update(view[:count])
    return hasher.hexdigest()


def _stamp(status: os.stat_result) -> Stamp:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _entry(path: Path, stamp: Stamp) -> Path | None:
    # With the inode, nodes that share a cache but have files of their own under one path do not meet.
    name = hashlib.sha256(os.fsencode(path.resolve()) + str(stamp[-1]).encode()).hexdigest()
    cache = folder()
    return None if cache is None else cache / f"{name[:32]}.json"


@contextmanager
def _turn(entry: Path | None) -> Iterator[None]:
    """Wait until no other process hashes this file. Without a cache or file locks there, go ahead."""
    with ExitStack() as stack:
        if entry is not None:
            with suppress(OSError):
                entry.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(entry.with_suffix(".lock").open("ab"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recall(entry: Path | None, path: Path, stamp: Stamp) -> str | None:
    if entry is None:
        return None
    try:
        found = json.loads(entry.read_bytes())
        known = (
            found["digest"]
            if (found["path"], found["stamp"]) == (str(path.resolve()), stamp)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if isinstance(known, str) and known.startswith("blake3-") else None


def _remember(entry: Path | None, path: Path, stamp: Stamp, found: str) -> None:
    if entry is None:
        return
    content = json.dumps({"path": str(path.resolve()), "stamp": stamp, "digest": found})
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
