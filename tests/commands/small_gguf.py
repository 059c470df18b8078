"""Small GGUF files with random weights, as llama.cpp's converter writes them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

HIDDEN, MLP, BLOCKS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
HEAD = HIDDEN // HEADS
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["\u0120 t", "h e", "\u0120t he", "i n", "\u010a \u010a", "\u0120 \u0120"]
TOKENS = [*CONTROL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
_HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fields(architecture: str) -> dict[str, Any]:
    return {
        f"{architecture}.block_count": BLOCKS,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": MLP,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.rope.dimension_count": HEAD,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.vocab_size": len(TOKENS),
        "general.name": "small",
        "general.license": "mit",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2" if architecture == "qwen2" else "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in TOKENS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def hf_weights(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random weights as in Hugging Face folders, by their names in GGUF files."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for block in range(BLOCKS):
        for name, shape in {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_gate": (MLP, HIDDEN),
            "ffn_up": (MLP, HIDDEN),
            "ffn_down": (HIDDEN, MLP),
        }.items():
            shapes[f"blk.{block}.{name}.weight"] = shape
        if architecture == "qwen2":
            for name, heads in {"attn_q": HEADS, "attn_k": KV_HEADS, "attn_v": KV_HEADS}.items():
                shapes[f"blk.{block}.{name}.bias"] = (heads * HEAD,)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def hf_name(name: str) -> str:
    *block, part, suffix = name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{_HF_NAMES[part]}.{suffix}"


def permuted(name: str, weight: np.ndarray) -> np.ndarray:
    """Returns a Llama weight as llama.cpp stores it: the rotary halves of q and k interleaved."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return weight
    heads = HEADS if ".attn_q." in name else KV_HEADS
    stored = np.empty_like(weight)
    for head in range(heads):
        for half in (0, 1):
            for row in range(HEAD // 2):
                stored[head * HEAD + 2 * row + half] = weight[head * HEAD + half * HEAD // 2 + row]
    return stored


def write(
    path: Path,
    architecture: str = "llama",
    kind: str = "F32",
    changed: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    extra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Writes a file whose matrices have the ggml type `kind`, and returns its values by their
    names in Hugging Face folders.

    `changed` replaces metadata fields; `without` names fields and tensors to leave out; `extra`
    are further tensors.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in ({**fields(architecture), **(changed or {})}).items():
        if name not in without:
            _add(writer, name, value)
    values = {}
    quantised = gguf.GGMLQuantizationType[kind]
    for name, weight in {**hf_weights(architecture), **(extra or {})}.items():
        if name in without:
            continue
        stored = permuted(name, weight) if architecture == "llama" else weight
        if weight.ndim == 1:
            writer.add_tensor(name, stored)
            values[name] = weight
            continue
        data = gguf.quantize(stored, quantised)
        writer.add_tensor(name, data, raw_dtype=quantised)
        values[name] = gguf.dequantize(data, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)
