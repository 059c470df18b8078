"""Tiny random models of the real classes, with everything that sets a family apart switched on and attention that is not flat."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WINDOW = 64
POSITIONS = 8192
ORIGINAL_POSITIONS = 440
"""Where LongRoPE changes its frequencies: of the prompts of one subject some are shorter, some longer."""

_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_POSITIONS,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [1.0 + 0.5 * n for n in range(16)],
    "original_max_position_embeddings": ORIGINAL_POSITIONS,
}
_GPT2_SIZES: dict[str, Any] = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": POSITIONS}


@dataclass(frozen=True)
class Family:
    """`tokenizer`: a name in `tokenizer_kinds.KINDS`; `config`: the transformers class of the configuration and its settings."""

    tokenizer: str
    config: str
    settings: dict[str, Any]


def _family(tokenizer: str, config: str, **settings: Any) -> Family:
    return Family(tokenizer, config, {**_SIZES, **settings})


FAMILIES = {
    "Llama-2": _family("llama-2", "LlamaConfig", head_dim=32),
    "Llama-3": _family("llama-3", "LlamaConfig", head_dim=32, rope_parameters=_LLAMA3_ROPE),
    "Mistral": _family("mistral", "MistralConfig", head_dim=32, sliding_window=WINDOW),
    "Qwen2": _family(
        "qwen2", "Qwen2Config", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "Qwen2.5": _family("qwen2", "Qwen2Config", tie_word_embeddings=True, sliding_window=WINDOW),
    "Qwen3": _family("qwen3", "Qwen3Config", head_dim=32),
    "Gemma": _family("gemma", "GemmaConfig", head_dim=32),
    "Gemma-2": _family(
        "gemma", "Gemma2Config", head_dim=32, sliding_window=WINDOW, query_pre_attn_scalar=32
    ),
    "Gemma-3": _family(
        "gemma", "Gemma3TextConfig", head_dim=32, sliding_window=WINDOW, query_pre_attn_scalar=32
    ),
    "Phi-3": _family(
        "phi-3",
        "Phi3Config",
        rope_parameters=_LONGROPE,
        original_max_position_embeddings=ORIGINAL_POSITIONS,
        pad_token_id=0,
    ),
    "Phi-4": _family("phi-4", "Phi3Config", pad_token_id=0),
    "OLMo-2": _family("olmo", "Olmo2Config"),
    "OLMo-3": _family("olmo", "Olmo3Config", sliding_window=WINDOW),
    "gpt-oss": _family(
        "gpt-oss",
        "GptOssConfig",
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
    ),
    "Granite": _family(
        "granite",
        "GraniteConfig",
        embedding_multiplier=4.0,
        attention_multiplier=0.1,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "SmolLM2": _family("smollm", "LlamaConfig", head_dim=32, tie_word_embeddings=True),
    "SmolLM3": _family("smollm3", "SmolLM3Config", no_rope_layer_interval=2, pad_token_id=0),
    "Falcon": Family(
        "falcon",
        "FalconConfig",
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "multi_query": True,
            "parallel_attn": True,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "GLM-4": _family("glm-4", "Glm4Config", head_dim=32, partial_rotary_factor=0.5, pad_token_id=0),
    "DeepSeek": _family(
        "deepseek",
        "DeepseekV3Config",
        num_key_value_heads=4,
        q_lora_rank=48,
        kv_lora_rank=512,  # with the rotary part the one head size that vLLM's CPU build has for MLA
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=32,
        first_k_dense_replace=4,
        n_routed_experts=8,
    ),
    "GPT-NeoX": _family("gpt-neox", "GPTNeoXConfig", rotary_pct=0.25, num_key_value_heads=4),
    "GPT-2": Family("gpt-2", "GPT2Config", _GPT2_SIZES),
}


def build(family: Family, vocab_size: int, bos: int | None, eos: int) -> Any:
    """A float32 model whose every parameter is random and whose attention looks at some tokens far more than at others."""
    import transformers
    from transformers import AutoModelForCausalLM

    config = getattr(transformers, family.config)(
        **family.settings, vocab_size=vocab_size, bos_token_id=bos, eos_token_id=eos
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    draw(model, 1.0)
    return model


def draw(model: Any, share: float) -> None:
    """Moves every parameter towards new random values, by `share` of the way."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                target = parameter + 0.1 * torch.randn_like(parameter)
            else:
                # Heads twice as wide as usual, for options that differ; queries and keys too, so that attention is not flat.
                sharp = any(
                    part in name
                    for part in ("q_", "k_", "qkv", "query", "kv_", "head", "embed", "wte")
                )
                target = (
                    (2.0 if sharp else 1.0)
                    / parameter.shape[-1] ** 0.5
                    * torch.randn_like(parameter)
                )
            parameter.lerp_(target, share)


def save(model: Any, folder: Path) -> None:
    """As a downloaded model has it: safetensors and config.json."""
    model.save_pretrained(folder)
