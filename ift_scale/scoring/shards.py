"""Shards: a chunk's result in a file of its own, written by whoever claims the chunk first.

Any number of processes on any number of nodes may work in one folder. A claim is a file lock, which the system gives back when its
holder ends, however it ends; so a dead process' chunks are taken up by the others or by the next run. Which chunks there are does
not depend on how many work on them.
"""

import fcntl
import re
import shutil
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.io.files import atomic_path, told_when_full
from ift_scale.io.locks import take_lock

SHARDS = "shards"
_SHARD = re.compile(r"\d+\.parquet")


class Shards:
    """The shards of one result: FOLDER/shards/KEY-CHUNKSIZE/NNNNNN.parquet (shards of another size hold other questions)."""

    def __init__(self, folder: Path, key: str, chunk_size: int):
        self._all = folder / SHARDS
        self.folder = self._all / f"{key[:16]}-{chunk_size}"

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def present(self) -> set[int]:
        try:
            return {int(path.stem) for path in self.folder.iterdir() if _SHARD.fullmatch(path.name)}
        except FileNotFoundError:
            return set()  # nobody has begun, or all is merged

    def drop_others(self) -> int:
        """Remove what was left for other questions or settings; returns how many shards that were."""
        others = [path for path in self._all.glob("*") if path != self.folder]
        count = sum(len(list(path.glob("*.parquet"))) for path in others)
        for path in others:
            shutil.rmtree(path, ignore_errors=True)
        return count

    def claim(self, number: int) -> IO[str] | None:
        """A held claim (closing it gives it back); None where somebody else holds the chunk or its shard is there."""
        with told_when_full(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = self.path(number).with_suffix(".claim").open("w")
            except FileNotFoundError:
                return None  # another rank has merged all and is removing the folder
        if not take_lock(file, fcntl.LOCK_EX) or self.path(number).is_file():
            file.close()
            return None
        return file

    def write(self, number: int, table: pa.Table) -> None:
        with atomic_path(self.path(number)) as temporary:
            pq.write_table(table, temporary)

    def drop(self) -> None:
        """Remove all shards once the whole result stands."""
        shutil.rmtree(self._all, ignore_errors=True)
