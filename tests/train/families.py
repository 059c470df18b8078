"""Tiny random models of every proven family, with all of its special features enabled."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WINDOW = 6
CONFIGS = {
    "llama": LlamaConfig(**SIZES, head_dim=8, attention_bias=True),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=WINDOW),
    "qwen2": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "gemma": GemmaConfig(**SIZES, head_dim=16),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "gemma3_text": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8
    ),
}


def build(family: str, seed: int = 0) -> Any:
    """Returns a float32 model with eager attention and no parameter at its initial 0 or 1."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation="eager").train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
