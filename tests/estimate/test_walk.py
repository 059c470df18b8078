"""The sizes of many architectures, compared with what small real models compute and hold on a CPU.

The models have several layers of each kind and other lengths than the traced ones.
"""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ift_scale.estimate import activations
from ift_scale.estimate.activations import Checkpointing, Precision
from ift_scale.estimate.shape import ModelShape, train_flops
from ift_scale.estimate.shape_of import shape_of
from tests.estimate.live_bytes import LiveBytes

SIZES = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "gemma2": SIZES | {"head_dim": 32},
    "gpt2": {
        "vocab_size": 96,
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 4096,
        "attn_pdrop": 0.0,
    },
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 512, "word_embed_proj_dim": 64},
    "bloom": {"vocab_size": 96, "hidden_size": 128, "n_layer": 4, "n_head": 4},
    "phi": SIZES,
    "falcon": SIZES | {"new_decoder_architecture": True, "num_kv_heads": 4},
    "starcoder2": SIZES,
    "cohere": SIZES,
    "mixtral": SIZES | {"num_local_experts": 8},
    "qwen3_moe": SIZES | EXPERTS | {"head_dim": 32, "decoder_sparse_step": 2},
    "olmoe": SIZES | EXPERTS,
    "gpt_oss": SIZES | {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": SIZES
    | {
        "q_lora_rank": 48,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 48,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 96,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
    },
    "mamba": {"vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 3, "state_size": 8},
    "mamba2": {
        "vocab_size": 96,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_heads": 8,
        "head_dim": 32,
        "n_groups": 2,
        "state_size": 32,
        "chunk_size": 64,
    },
    "lfm2": SIZES | {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "jamba": SIZES
    | {
        "num_experts": 4,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "use_mamba_kernels": False,
    },
    "qwen3_next": SIZES
    | EXPERTS
    | {
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "shared_expert_intermediate_size": 96,
    },
}

NO_FLASH_ON_A_CPU = {"gpt_oss"}
"""Attention with sinks, which transformers computes eagerly there. The walk assumes a kernel that
saves no matrix of weights; so do sizes of values that differ from those of keys."""


def _conv_backward(
    gradient: Any, inputs: Any, weight: Any, *rest: Any, out_shape: Any = None, **how: Any
) -> int:
    """Twice the forward pass. torch 2.13 counts a depthwise convolution as a dense one here."""
    return 4 * math.prod(gradient) // gradient[1] * math.prod(weight)


def _model(name: str, **how: Any) -> tuple[Any, ModelShape]:
    config = CONFIG_MAPPING[name](**MODELS[name])
    model: Any = AutoModelForCausalLM.from_config(config, **how)
    return model, shape_of({"model_type": name, **MODELS[name]})


@pytest.mark.engine
@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """All L^2 pairs, of which causal attention needs L (L + 1) / 2."""
    model, shape = _model(name, attn_implementation="eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    length = 192
    fixed = {torch.ops.aten.convolution_backward: _conv_backward}
    with FlopCounterMode(display=False, custom_mapping=fixed) as counter:
        logits = model(input_ids=torch.randint(0, 96, (1, length)), use_cache=False).logits
        logits.sum().backward()
    masked = 3 * shape.pair_flops * length * (length - 1) / 2
    found = train_flops(shape, [length], [length], pruned=False) + masked
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert found == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("dtype", "checkpointing"),
    [(torch.float32, "none"), (torch.bfloat16, "none"), (torch.bfloat16, "full")],
)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in NO_FLASH_ON_A_CPU])
def test_bytes_are_those_that_a_model_holds(
    name: str, dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    model, shape = _model(name)
    model.to(dtype).train()
    if checkpointing == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():  # as ZeRO takes gradients as soon as they exist
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    tokens = 320
    ids = torch.randint(0, 96, (1, tokens))
    with LiveBytes(model) as live:
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
        kept = live.now
        hidden.backward(torch.ones_like(hidden))
    precision = Precision(dtype.itemsize, fused=False, longest=tokens)
    expected = tokens * activations.kept(shape, precision, checkpointing)
    peak = expected + tokens * activations.working(shape, precision, checkpointing)
    assert expected == pytest.approx(kept, rel=0.1)
    assert peak == pytest.approx(live.peak, rel=0.1)
