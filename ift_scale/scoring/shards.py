"""Shards: one result file per chunk, written by the process that claims the chunk first.

Any number of processes on any number of nodes may work in one folder. A claim is a file lock, which
the system releases when its owner ends for any reason. Other processes or the next run then take
over a dead process's chunks. The set of chunks does not depend on the number of processes.
"""

import fcntl
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.errors import ArtifactError
from ift_scale.io.files import atomic_path, translate_disk_errors
from ift_scale.io.locks import take_lock
from ift_scale.io.text_file import refuse_unreadable

SHARDS = "shards"
_SHARD = re.compile(r"\d+\.parquet")
_PARQUET, _DIGEST_BYTES = b"PAR1", 32


@contextmanager
def open_shard(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a shard. Raises ArtifactError if it is damaged.

    A shard is a Parquet file and its digest; those of old versions have none.
    """
    refuse_unreadable(path)
    content = path.read_bytes()
    try:
        if not content.endswith(_PARQUET):
            content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
            if sha256(content).digest() != digest:
                raise ValueError("its content is not what was written")
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            yield file
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(
            f"{path}: a damaged shard ({reason}). Remove it, and run the same command again: only "
            "its questions are computed again."
        ) from error


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns a shard's rows. Raises ArtifactError if it is damaged."""
    with open_shard(path) as file:
        return file.read(columns)


class Shards:
    """The shards of one result: FOLDER/shards/KEY-CHUNKSIZE/NNNNNN.parquet.

    The chunk size is in the path because shards of another size contain other questions.
    """

    def __init__(self, folder: Path, key: str, chunk_size: int):
        self._all = folder / SHARDS
        self.folder = self._all / f"{key[:16]}-{chunk_size}"

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def present(self) -> set[int]:
        """Returns the numbers of the finished shards."""
        try:
            return {int(path.stem) for path in self.folder.iterdir() if _SHARD.fullmatch(path.name)}
        except FileNotFoundError:
            return set()  # not started, or already merged

    def remove_stale(self) -> int:
        """Removes shards of other questions or settings; returns how many there were."""
        others = [path for path in self._all.glob("*") if path != self.folder]
        count = sum(len(list(path.glob("*.parquet"))) for path in others)
        for path in others:
            shutil.rmtree(path, ignore_errors=True)
        return count

    def claim(self, number: int) -> IO[str] | None:
        """Returns a claim, released by closing it, or None if the chunk is claimed or finished."""
        with translate_disk_errors(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = self.path(number).with_suffix(".claim").open("w")
            except FileNotFoundError:
                return None  # another rank merged the shards and is removing the folder
        if not take_lock(file, fcntl.LOCK_EX) or self.path(number).is_file():
            file.close()
            return None
        return file

    def write(self, number: int, table: pa.Table) -> None:
        out = pa.BufferOutputStream()
        pq.write_table(table, out)
        content = out.getvalue().to_pybytes()
        with atomic_path(self.path(number)) as temporary:
            temporary.write_bytes(content + sha256(content).digest())

    def remove(self) -> None:
        """Removes all shards after the result has been merged."""
        shutil.rmtree(self._all, ignore_errors=True)
