"""A small Llama whose attention heads begin with a purpose, so that a CPU's two million tokens suffice to answer by letter.

Random heads need longer to find that a letter belongs to the words behind it than a CPU has (docs/planted.md).
"""

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.planted.tokenizer import MAX_LENGTH

HEAD_SIZE = 64
# The embeddings' first coordinate is the same for every token: what heads that look back by place, not content, can rest on.
_CONSTANT = 0.3
_LOOK_BACK_LAYERS = 2
_LOOK_BACK_STRENGTH = 5.0
_NUM_SHARP_FREQUENCIES = 10
_CONTENT_SHARE = 0.3


def build_model(vocab_size: int, hidden_size: int, num_layers: int, seed: int) -> LlamaForCausalLM:
    """Heads of 64, as every engine takes them: in each layer the last two apart, which in the first layers look one and two tokens
    back, they begin with queries equal to keys (a token finds its like); all outputs undo the values (Trockman and Kolter 2023,
    "Mimetic initialization of self-attention layers")."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // HEAD_SIZE,
        num_key_value_heads=hidden_size // HEAD_SIZE,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _give_heads_a_purpose(model)
    return model


def _give_heads_a_purpose(model: LlamaForCausalLM) -> None:
    embeddings_VD = model.model.embed_tokens.weight
    embeddings_VD[:, 0] = _CONSTANT
    constant = _CONSTANT / math.sqrt(float(embeddings_VD.pow(2).mean()))  # behind the norm, about
    num_heads = model.config.num_attention_heads
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        num_alike = max(0, num_heads - 2) * HEAD_SIZE
        attention.q_proj.weight[:num_alike] = attention.k_proj.weight[:num_alike]
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        if number < _LOOK_BACK_LAYERS:
            for head, distance in zip(
                range(max(0, num_heads - 2), num_heads), (1, 2), strict=False
            ):
                rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
                _look_back(
                    attention.q_proj.weight[rows], attention.k_proj.weight[rows], distance, constant
                )


def _look_back(query_HD: Tensor, key_HD: Tensor, distance: int, constant: float) -> None:
    """Have a head attend to the token `distance` before: its query is its key turned on by as many positions, in the rotary
    embedding's fastest frequencies, whatever the tokens are."""
    half = HEAD_SIZE // 2
    angles = distance * 10000.0 ** (-torch.arange(half) / half)
    strength = torch.zeros(half)
    strength[:_NUM_SHARP_FREQUENCIES] = _LOOK_BACK_STRENGTH
    query_HD *= _CONTENT_SHARE
    key_HD *= _CONTENT_SHARE
    key_HD[:, 0] = torch.cat([strength, torch.zeros(half)]) / constant
    query_HD[:, 0] = (
        torch.cat([strength * torch.cos(angles), -strength * torch.sin(angles)]) / constant
    )
