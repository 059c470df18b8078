"""Where DeepSpeed's operators are compiled, and locks that killed compilations have left there.

torch waits for ever for the file `lock` in an extension's folder, which a killed process does not remove.
"""

import os
import sys
import time
from pathlib import Path

STALE_SECONDS = 1200.0
"""No operator of DeepSpeed's takes so long to compile."""


def folder() -> Path:
    """TORCH_EXTENSIONS_DIR; where it is not set, a folder of this environment: two that share one undo each other's work."""
    return Path(
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    )


def drop_stale_locks(extensions: Path, now: float) -> list[Path]:
    """Remove the locks that are older than any compilation; returns them. `now` in seconds since the epoch."""
    stale = [
        lock for lock in extensions.glob("**/lock") if now - lock.stat().st_mtime > STALE_SECONDS
    ]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def prepare(local_rank: int) -> None:
    """Before a rank uses an operator: one rank a node removes what would hang it."""
    extensions = folder()
    if local_rank == 0:
        for lock in drop_stale_locks(extensions, time.time()):
            print(f"removed {lock}, which a killed compilation has left", flush=True)
