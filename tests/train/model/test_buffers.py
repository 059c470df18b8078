"""Tensors computed from the config, such as rotary frequencies, stay exact at every ZeRO stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from ift_scale.train.data import dataset
from ift_scale.train.model import buffers
from tests.train import group
from tests.train.families import CONFIGS
from tests.train.model.buffer_ranks import STAGES

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
LENGTH = 4608


def _config(family: str, rope: str) -> Any:
    fields = {
        name: value
        for name, value in CONFIGS[family].to_dict().items()
        if name not in ("model_type", "transformers_version")
    }
    chosen = ROPES[rope] | {"rope_theta": 10_000.0}
    fields["rope_parameters"] = chosen
    if family == "gemma3_text":
        fields["rope_parameters"] = {
            "full_attention": chosen,
            "sliding_attention": ROPES["default"] | {"rope_theta": 1_000.0},
        }
    return type(CONFIGS[family])(**fields)


def _same(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == right.keys() and len(right) > 0
    return all(
        found[name].dtype == right[name].dtype and torch.equal(found[name], right[name])
        for name in right
    )


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_restored_is_what_transformers_loads(
    tmp_path: Path, family: str, rope: str, dtype: torch.dtype
) -> None:
    config = _config(family, rope)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    right = dict(buffers._computed_of(loaded))
    exact = buffers.computed(type(loaded), config, dtype)
    assert _same(exact, right)
    assert {tensor.dtype for name, tensor in exact.items() if "inv_freq" in name} == {torch.float32}
    with torch.no_grad():
        for tensor in right.values():
            tensor.data = tensor.half() * 2
    loaded.model.rotary_emb.plain = torch.zeros(1)  # not ours: left unchanged
    buffers.restore(loaded, exact, torch.device("cpu"))
    del loaded.model.rotary_emb.plain
    assert _same(dict(buffers._computed_of(loaded)), exact)


def test_a_tensor_that_is_a_plain_attribute_is_one_of_them() -> None:
    module = torch.nn.Linear(1, 1)
    module.frequencies = torch.ones(2)  # type: ignore[assignment]
    module.register_buffer("stored", torch.ones(3))
    module.register_buffer("computed", torch.ones(3), persistent=False)
    assert sorted(dict(buffers._computed_of(torch.nn.Sequential(module)))) == [
        "0.computed",
        "0.frequencies",
    ]


def _sharpened(folder: Path) -> Any:
    """A Llama with non-uniform attention, so that a wrong position gives a wrong loss."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                scale = 3.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.normal_(0, scale * parameter.shape[1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    return model


def _long_example(path: Path) -> torch.Tensor:
    ids = np.random.default_rng(0).integers(0, 97, LENGTH).astype(np.int32)
    dataset.save(
        dataset.TokenizedSet(ids, np.arange(LENGTH) > 0, np.array([0, LENGTH]), np.ones(1), 0), path
    )
    return torch.tensor(ids.astype(np.int64))


@pytest.mark.engine
def test_losses_at_position_4096_and_beyond_are_those_of_transformers(tmp_path: Path) -> None:
    _sharpened(tmp_path / "model")
    ids = _long_example(tmp_path / "tokens")
    files = [tmp_path / name for name in ("model", "tokens", "found.pt")]
    group.run("tests.train.model.buffer_ranks", *files, world_size=2, logs=tmp_path)
    found = torch.load(tmp_path / "found.pt")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    with torch.no_grad():
        plain = F.cross_entropy(loaded(ids[None]).logits[0, :-1].float(), ids[1:], reduction="none")
        rounded = loaded.model.rotary_emb.inv_freq.bfloat16()
        right = dict(buffers._computed_of(loaded))
        loaded.model.rotary_emb.inv_freq = rounded
        wrong = F.cross_entropy(loaded(ids[None]).logits[0, :-1].float(), ids[1:], reduction="none")
    noise, effect = (found[2]["losses"] - plain).abs().mean(), (wrong - plain).abs().mean()
    print(f"mean difference per token: ZeRO-2 {noise:.4f}, rounded frequencies {effect:.4f} nats")
    assert effect > 10 * noise  # the example is long enough to detect rounding
    for stage in STAGES:
        assert torch.equal(found[stage]["losses"], found[2]["losses"]), stage
        assert all(_same(computed, right) for computed in found[stage]["computed"]), stage
