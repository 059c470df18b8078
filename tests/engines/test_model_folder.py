import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ift_scale.engines import model_folder
from ift_scale.errors import DataError
from ift_scale.models import config_class


def test_no_such_folder() -> None:
    with pytest.raises(DataError, match=r"no such folder. Set model.path"):
        model_folder.resolve("/no/such/model")


def test_a_gguf_file_is_to_be_imported(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match=r"a GGUF file.*ift-scale import .*model.gguf FOLDER"):
        model_folder.resolve(str(tmp_path / "model.gguf"))


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"contains no safetensors weights.*pytorch_model.bin.*convert .bin"
    ):
        model_folder.resolve(str(tmp_path))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config.json: is missing"):
        model_folder.resolve(str(tmp_path))


def test_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 shards are missing .*model-00002"):
        model_folder.resolve(str(tmp_path))


@pytest.mark.parametrize("part", [0, 5, 0.1, 0.99])
def test_half_written_weights(tmp_path: Path, part: float) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((64, 64), np.float32), "b": np.ones(7, np.float32)}, path)
    model_folder.resolve(str(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) if part < 1 else int(part)])
    with pytest.raises(
        DataError,
        match=r"model.safetensors: is incomplete or damaged: it has .* bytes, and .*Copy or fetch",
    ):
        model_folder.resolve(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 96},
        {"model_type": "opt", "hidden_size": 96},
        {"model_type": "mpt", "d_model": 96},
        {"model_type": "gemma3", "text_config": {"hidden_size": 96}},
    ],
)
def test_the_hidden_size_by_the_name_that_the_class_gives_it(
    config: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config_class.hidden_size(tmp_path) == 96
