"""Damaged shards are refused, also where Parquet itself would read other values."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ift_scale.errors import ArtifactError
from ift_scale.scoring.shards import Shards, read_shard

TABLE = pa.table({"id": ["a", "b"], "logprobs": [[-1.0, -2.0], [-0.5, -3.0]]})


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "k" * 16, 2)
    shards.write(0, TABLE)
    path = shards.path(0)
    assert read_shard(path) == TABLE
    assert read_shard(path, ["id"]) == TABLE.select(["id"])
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"000000.parquet: a damaged shard .* Remove it"):
            read_shard(path)
    for part in (content[:-1], content[: len(content) // 2], b"", b"PAR1"):
        path.write_bytes(part)
        with pytest.raises(ArtifactError, match="a damaged shard"):
            read_shard(path)


def test_shards_of_old_versions_are_read(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "0.parquet")
    assert read_shard(tmp_path / "0.parquet") == TABLE
