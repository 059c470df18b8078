"""Exports of many classes: their families' names, shapes, dtypes and values."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ift_scale.config import TrainConfig
from ift_scale.engines import weight_checks
from ift_scale.train.engine.export import export
from ift_scale.train.engine.stored_names import stored_groups
from ift_scale.train.model import packed
from ift_scale.train.proof.shrink import shrink, text_class, tiny_model
from tests.train import group

pytestmark = pytest.mark.engine

# Merged experts, renamed and fused tensors, tied heads, buffers, state-space layers.
TYPES = """
    afmoe bamba bloom cohere2 deepseek_v2 deepseek_v3 ernie4_5_moe falcon falcon_h1 falcon_mamba
    flex_olmo gemma2 gemma3 gemma3n glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite
    granitemoe granitemoehybrid jamba jetmoe kimi_linear lfm2 llama llama4_text mamba
    mamba2 minimax minimax_m2 mixtral mpt nemotron_h olmo2 olmoe openai-gpt opt persimmon phi phi3
    phimoe qwen2_moe qwen3_5 qwen3_moe qwen3_next recurrent_gemma rwkv smollm3 stablelm xglm xlnet
    xlstm zamba2
""".split()
_TOKENIZER = SimpleNamespace(save_pretrained=lambda folder: None)
_OPTIONS = TrainConfig(activation_checkpointing="none")
_IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def _base(folder: Path, model_type: str) -> Any:
    """Saves a tiny model as transformers does, and returns it."""
    settings = CONFIG_MAPPING[model_type]()
    if model_type == "deepseek_v2":
        settings.num_experts_per_tok = 2
    kind, settings = text_class(settings)
    model = tiny_model(kind, shrink(settings), 0)
    model.save_pretrained(folder)
    return model


def _built(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    kind, settings = packed.class_and_config(base)
    return packed.build(kind, settings, packed.read_weights(base), _OPTIONS, dtype, None)


def _read(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(_IDS, use_cache=False).logits
        return logits


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("model_type", TYPES)
def test_an_export_has_the_names_and_values_of_its_base(model_type: str, tmp_path: Path) -> None:
    """Also after an evaluation, for which RWKV changes its weights."""
    base, out = tmp_path / "base", tmp_path / "out"
    _base(base, model_type)
    built = _built(base)
    _logits(built)
    export(built, False, out, base, _TOKENIZER, torch.float32, 1 << 16)
    _assert_equal(_read(out), _read(base))
    weight_checks.check(out)
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, out))
    torch.testing.assert_close(_logits(after), _logits(before), atol=1e-5, rtol=0)


def test_float32_among_bfloat16_is_kept(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    _base(base, "mixtral").to(torch.bfloat16).save_pretrained(base)
    weights = {
        name: tensor.float() if ".gate." in name else tensor for name, tensor in _read(base).items()
    }
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    export(_built(base, torch.bfloat16), False, out, base, _TOKENIZER, torch.bfloat16)
    found = _read(out)
    _assert_equal(found, weights)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.bfloat16}


def test_experts_are_stored_one_by_one(tmp_path: Path) -> None:
    """The group that has to be gathered is a layer's merged experts, not the model."""
    _base(tmp_path, "mixtral")
    groups = stored_groups(_built(tmp_path))
    merged = next(group for group in groups if any("gate_up_proj" in n for n in group.tensors))
    assert len(merged.tensors) == 1
    assert len(merged.stored) > 4 and all(".experts." in name for name in merged.stored)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt2"])
def test_a_partitioned_model_is_exported(model_type: str, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    _base(base, model_type)
    group.run("tests.train.engine.zero3_export_rank", base, out, world_size=1, logs=tmp_path)
    _assert_equal(_read(out), _read(base))
