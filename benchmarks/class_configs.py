"""An example config of every causal language model class in transformers.

The defaults of a config class are those of a published model, except where they leave a field
empty without which the class cannot be built; `_FILLED` has those, from published checkpoints.
"""

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_QWEN4 = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 128,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 16,
    "ple_layer_ids": [2, 6],
    "eos_token_id": 1,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000.0,
        "partial_rotary_factor": 0.25,
    },
}
_FILLED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 10,
        "rope_parameters": {
            name: {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [22, 22, 20],
            }
            for name in ("sliding_attention", "full_attention")
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "n_routed_experts": 128,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 64, "moe_topk": 8},
    "lfm2": {
        "num_hidden_layers": 16,
        "layer_types": (["conv", "conv", "full_attention"] * 5 + ["conv"]),
    },
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "xmod": {"default_language": "en_XX"},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000.0}},
    "granitemoehybrid": {
        "layer_types": (["linear_attention"] * 5 + ["full_attention"] + ["linear_attention"] * 2)
        * 4
    },
    "bloom": {"hidden_size": 1024, "n_layer": 24, "n_head": 16},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
}


def example(model_type: str) -> PretrainedConfig:
    """Returns a config of the type, as a decoder where the class can be both."""
    made: PretrainedConfig = CONFIG_MAPPING[model_type](**_FILLED.get(model_type, {}))
    if getattr(made, "is_decoder", True) is False and not made.is_encoder_decoder:
        made.is_decoder = True
    return made


def model_types() -> list[str]:
    """Returns the types with a causal language model, except where a type's text part is another
    one of them."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return [name for name in known if f"{name}_text" not in known]
