"""Damaged configs: the proof and the sizes refuse them in words, with the field and its value.

Each field of a small model is damaged in each way. The few that no class of transformers minds are
listed; they build the same model, or one that can be trained.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ift_scale.errors import DataError
from ift_scale.estimate.shape_of import shape_of
from ift_scale.models.config_file import model_config
from ift_scale.train.proof import stored

pytestmark = pytest.mark.engine
_HUGE = 10**30
_MODELS: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
    "gpt2": {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4},
    "mixtral": {"hidden_size": 64, "num_key_value_heads": 2, "num_local_experts": 4},
    "phi": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 99},
}
_DAMAGE = ["many", 0, -3, None, [4], {"a": 1}, 2.5, True, _HUGE]
_HARMLESS = [("gpt2", "n_inner", None), ("llama", "head_dim", None)]
"""Null is the documented default of these."""
# What the interpreter and C++ code write, and what an author would not.
_RAW = re.compile(
    r"<class|object has|operand|not iterable|unhashable|subscript|NoneType|Traceback|division by"
    r"|not supported between|out of range|Expected .* but|invalid shape|\b[A-Z]\w*(Error|Shrink)\b"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _shape(folder: Path) -> object:
    return shape_of(model_config(folder), folder / "config.json")


def _proof(folder: Path) -> object:
    return stored.proof_of(folder, 128)


def _written(folder: Path, fields: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("use", [_shape, _proof])
@pytest.mark.parametrize("name", _MODELS)
def test_each_kind_of_damage_is_reported_in_words(
    name: str, use: Callable[[Path], object], tmp_path: Path
) -> None:
    fields = {"model_type": name, **_MODELS[name]}
    use(_written(tmp_path, fields))
    for field in _MODELS[name]:
        for value in _DAMAGE:
            folder = _written(tmp_path, {**fields, field: value})
            if (name, field, value) in _HARMLESS:
                use(folder)
                continue
            with pytest.raises(DataError) as caught:
                use(folder)
            message = str(caught.value)
            assert message.startswith(f"{folder}/config.json: field '{field}': "), message
            assert value is None or f"(value: {value!r})" in message, message
            assert message.endswith("Correct it, or fetch config.json again"), message
            assert not _RAW.search(message.replace(str(folder), "")), message


@pytest.mark.parametrize("use", [_shape, _proof])
def test_a_missing_class_is_reported_in_words(
    use: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="field 'model_type': is missing, so the model's class"):
        use(_written(tmp_path, _MODELS["llama"]))


def _divided(settings: object) -> list[int]:
    return [1 // 0]


def _undefined(model: Any) -> None:
    for parameter in model.parameters():
        parameter.fill_(float("nan"))


@pytest.mark.parametrize(
    ("step", "function", "problem"),
    [
        ("shrink.chosen", _divided, f"; it fails in {Path(__file__).name}, line "),
        ("tiny._draw", _undefined, ": the logits of LlamaForCausalLM have a deviation of nan"),
    ],
)
def test_a_model_that_cannot_be_made_small_is_reported_in_words(
    step: str, function: object, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"ift_scale.train.proof.{step}", function)
    sizes = {"num_hidden_layers": 2, "vocab_size": 128, "intermediate_size": 96}
    folder = _written(tmp_path, {"model_type": "llama", **_MODELS["llama"], **sizes})
    with pytest.raises(DataError) as caught:
        _proof(folder)
    message = str(caught.value)
    assert f"cannot train a small model of it{problem}" in message, message
    assert not _RAW.search(message.replace(str(folder), "")), message
