"""The folder of DeepSpeed's compiled operators, and the removal of stale locks in it.

A killed compilation leaves a file `lock` in an extension's folder, for which torch waits forever.
"""

import os
import sys
import time
from pathlib import Path

STALE_SECONDS = 1200.0
"""Longer than any DeepSpeed operator takes to compile."""


def folder() -> Path:
    """Returns TORCH_EXTENSIONS_DIR, after setting it to a folder of this environment if unset.

    Environments that share a folder would overwrite each other's operators.
    """
    return Path(
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    )


def drop_stale_locks(extensions: Path, now: float) -> list[Path]:
    """Remove locks older than any compilation and return them. `now`: seconds since the epoch."""
    stale = [
        lock for lock in extensions.glob("**/lock") if now - lock.stat().st_mtime > STALE_SECONDS
    ]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def remove_stale_locks(local_rank: int) -> None:
    """Remove stale locks, on one rank per node, before an operator is used."""
    extensions = folder()
    if local_rank == 0:
        for lock in drop_stale_locks(extensions, time.time()):
            print(f"removed {lock}, left by a killed compilation", flush=True)
