import json
from pathlib import Path

import pytest

from ift_scale.errors import DataError
from ift_scale.inference import model_folder


def test_no_such_folder() -> None:
    with pytest.raises(DataError, match=r"no such folder. Set model.path"):
        model_folder.resolve("/no/such/model")


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no safetensors weights.*pytorch_model.bin.*must be converted"):
        model_folder.resolve(str(tmp_path))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config.json: is missing"):
        model_folder.resolve(str(tmp_path))


def test_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 shards are missing .*model-00002"):
        model_folder.resolve(str(tmp_path))
