"""Small models of very different classes: what they keep, and that their attention looks."""

import itertools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig

from ift_scale.train.proof.layer_choice import chosen, num_layers
from ift_scale.train.proof.shrink import (
    CannotShrink,
    has_dropout,
    limits,
    shrink,
    text_class,
    tiny_model,
    two_layers,
    unknown_lengths,
)
from ift_scale.train.proof.small_fields import SPECIAL_TOKENS

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 48,
    "long_factor": [1.0 + n for n in range(48)],
    "original_max_position_embeddings": 4096,
}
# The class of a config, its settings, fields of the small config, and its limits in tokens.
_Case = tuple[str, dict[str, Any], dict[str, Any], list[int]]
CASES: dict[str, _Case] = {
    "llama3": (
        "Llama",
        {
            "num_key_value_heads": 8,
            "rope_parameters": _LLAMA3_ROPE,
            "max_position_embeddings": 131072,
        },
        {"num_key_value_heads": 2, "max_position_embeddings": 256, "num_hidden_layers": 2},
        [16],
    ),
    "dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
        {"max_position_embeddings": 16, "num_key_value_heads": 4},
        [16],
    ),
    "gemma2": (
        "Gemma2",
        {},
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        [8],
    ),
    "gemma3": (
        "Gemma3Text",
        {"num_hidden_layers": 62},
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        [8],
    ),
    "gemma3n": (
        "Gemma3nText",
        {},
        {"num_kv_shared_layers": 2, "laurel_rank": 16, "altup_num_inputs": 4},
        [8],
    ),
    "gemma4": ("Gemma4Text", {}, {"layer_types": ["sliding_attention", "full_attention"]}, [8]),
    "longrope": (
        "Phi3",
        {
            "rope_parameters": _LONGROPE,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 32000,
        },
        {"max_position_embeddings": 512, "original_max_position_embeddings": 16},
        [16],
    ),
    "gpt2": ("GPT2", {}, {"n_embd": 64, "n_head": 4, "n_positions": 128, "attn_pdrop": 0.0}, []),
    "falcon-alibi": (
        "Falcon",
        {"alibi": True, "parallel_attn": False},
        {"alibi": True, "parallel_attn": False, "multi_query": True, "hidden_dropout": 0.0},
        [],
    ),
    "bloom": ("Bloom", {}, {"hidden_size": 64}, []),
    "gpt-neo": ("GPTNeo", {}, {"attention_types": [[["global", "local"], 1]]}, [8]),
    "mixtral": ("Mixtral", {}, {"num_local_experts": 4, "num_experts_per_tok": 2}, []),
    "gpt-oss": (
        "GptOss",
        {},
        {"layer_types": ["sliding_attention", "full_attention"], "swiglu_limit": 7.0},
        [8, 16],
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {},
        {
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_head_dim": 32,
            "routed_scaling_factor": 2.5,
        },
        [],
    ),
    "cohere2": (
        "Cohere2",
        {},
        {"layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.0625},
        [8],
    ),
    "llama4": (
        "Llama4Text",
        {},
        {
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "moe_layers": [0, 1],
            "attn_temperature_tuning": True,
        },
        [8],
    ),
    "mamba2": ("Mamba2", {}, {"num_heads": 4, "head_dim": 32, "n_groups": 2}, [8]),
    "jamba": ("Jamba", {}, {"num_hidden_layers": 6, "attn_layer_period": 8}, []),
    "zamba2": (
        "Zamba2",
        {},
        {"layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention"]},
        [8],
    ),
    "qwen3-next": ("Qwen3Next", {}, {"layer_types": ["linear_attention", "full_attention"]}, []),
    "rwkv": ("Rwkv", {}, {"rescale_every": 1, "attention_hidden_size": 64}, []),
    "hrm": ("HrmText", {}, {"num_layers_per_stack": 2, "num_hidden_layers": 16}, []),
    "deepseek-v4": (
        "DeepseekV4",
        {},
        {"mlp_layer_types": ["hash_moe", "moe", "moe"], "index_topk": 8},
        [4, 8, 64],
    ),
    "moe-from-a-step": (
        "Qwen2Moe",
        {"decoder_sparse_step": 2, "mlp_only_layers": [5]},
        {"decoder_sparse_step": 2},
        [],
    ),
}


# Sizes of published models whose heads are not a power of two, or not hidden size / heads wide.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "Llama",
        {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "Qwen2-0.5B": (
        "Qwen2",
        {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2},
    ),
    "Phi-4-mini": (
        "Phi3",
        {
            "hidden_size": 3072,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "rope_parameters": _LONGROPE | {"partial_rotary_factor": 0.75},
            "pad_token_id": 199999,
        },
    ),
    "Gemma-3-270m": (
        "Gemma3Text",
        {"hidden_size": 640, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
    ),
    "Falcon-7B": ("Falcon", {"hidden_size": 4544, "num_attention_heads": 71}),
    "Falcon-40B": (
        "Falcon",
        {
            "hidden_size": 8192,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
        },
    ),
    "Pythia-160M": ("GPTNeoX", {"hidden_size": 768, "num_attention_heads": 12}),
    "Phi-2": (
        "Phi",
        {
            "hidden_size": 2560,
            "num_attention_heads": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
    "GPT-J": ("GPTJ", {"n_embd": 4096, "n_head": 16, "rotary_dim": 64}),
    "DeepSeek-V2-Lite": (
        "DeepseekV2",
        {
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "q_lora_rank": None,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
        },
    ),
}


def _config(name: str) -> PretrainedConfig:
    kind, settings, _, _ = CASES[name]
    made: PretrainedConfig = getattr(transformers, f"{kind}Config")(**settings)
    return made


def _ids(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SPECIAL_TOKENS, 128, (1, 40), generator=generator)


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_small_config_keeps_what_matters(name: str) -> None:
    _, _, expected, lengths = CASES[name]
    small = shrink(_config(name))
    assert {field: getattr(small, field) for field in expected} == expected
    assert limits(small) == lengths


@pytest.mark.parametrize("name", CASES)
def test_flags_and_factors_are_not_changed(name: str) -> None:
    """Every true or false field, every factor, every text, and what is absent stays absent."""
    real = _config(name).to_dict()
    small = shrink(_config(name)).to_dict()
    for field, value in real.items():
        if "drop" in field or field in ("dtype", "query_pre_attn_scalar"):
            continue
        if value is None or isinstance(value, (bool, float, str)):
            assert small[field] == value, field


@pytest.mark.parametrize("name", CASES)
def test_a_small_model_looks_at_its_row(name: str) -> None:
    kind, settings = text_class(_config(name))
    small = shrink(settings)
    model = tiny_model(kind, small, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    ids = _ids()
    logits_TV = _logits(model, ids)
    assert logits_TV.isfinite().all()
    assert 1 < logits_TV.std() < 4
    first = ids.clone()
    first[0, 0] = 16 + (first[0, 0] - 15) % 112
    assert (_logits(model, first)[-1] - logits_TV[-1]).abs().max() > 1e-3
    last = ids.clone()
    last[0, -1] = 16 + (last[0, -1] - 15) % 112
    torch.testing.assert_close(_logits(model, last)[:-1], logits_TV[:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_can_be_made_small(name: str) -> None:
    kind, settings = PUBLISHED[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = tiny_model(text_class(config)[0], shrink(config), 0)
    assert _logits(model, _ids()).isfinite().all()


_MLA = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "qk_head_dim")


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [
        # Values as wide as queries, as one part of them, and as neither.
        ("DeepseekV3", {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128}, _MLA),
        ("DeepseekV3", {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 192}, _MLA),
        ("DeepseekV3", {"qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256}, _MLA),
        ("DeepseekV3", {"qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 320}, _MLA),
        ("DeepseekV3", {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24}, _MLA),
        ("DeepseekV3", {"qk_nope_head_dim": 56, "qk_rope_head_dim": 32, "v_head_dim": 40}, _MLA),
        ("DeepseekV3", {"q_lora_rank": 512, "kv_lora_rank": 512}, ("q_lora_rank", "kv_lora_rank")),
        ("DeepseekV3", {"q_lora_rank": 768, "kv_lora_rank": 512}, ("q_lora_rank", "kv_lora_rank")),
        (
            "Qwen3Next",
            {"linear_key_head_dim": 128, "linear_value_head_dim": 256, "head_dim": 64},
            ("linear_key_head_dim", "linear_value_head_dim", "head_dim"),
        ),
        (
            "Qwen2Moe",
            {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
            ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size"),
        ),
        (
            "Qwen2Moe",
            {"moe_intermediate_size": 5632, "shared_expert_intermediate_size": 5632},
            ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size"),
        ),
    ],
)
def test_widths_are_equal_where_the_real_ones_are(
    kind: str, settings: dict[str, Any], names: tuple[str, ...]
) -> None:
    real = getattr(transformers, f"{kind}Config")(**settings)
    small = shrink(real)
    for one, other in itertools.combinations(names, 2):
        equal = getattr(real, one) == getattr(real, other)
        assert (getattr(small, one) == getattr(small, other)) == equal, (one, other)
    assert _logits(tiny_model(text_class(real)[0], small, 0), _ids()).isfinite().all()


@pytest.mark.parametrize("head_dim", [64, 128, 160])
def test_a_head_is_as_wide_as_hidden_size_by_heads_only_in_such_a_model(head_dim: int) -> None:
    small = shrink(transformers.Qwen3Config(head_dim=head_dim))  # 4096 / 32
    assert (small.head_dim == small.hidden_size // small.num_attention_heads) == (head_dim == 128)


def test_heads_that_do_not_divide_the_hidden_size_do_not_in_the_small_model() -> None:
    small = shrink(transformers.Qwen3Config(hidden_size=1000, num_attention_heads=24, head_dim=64))
    assert small.hidden_size % small.num_attention_heads


def test_a_window_ends_what_a_model_sees() -> None:
    """Mistral's two layers of 8 tokens reach 14 back; a real window of 4096 would hide nothing."""
    kind, settings = text_class(transformers.MistralConfig())
    model = tiny_model(kind, shrink(settings), 0)
    ids, other = _ids(), _ids()
    other[0, :20] = _ids(1)[0, :20]
    same, moved = _logits(model, ids), _logits(model, other)
    torch.testing.assert_close(moved[-1], same[-1], atol=1e-5, rtol=0)
    assert (moved[24] - same[24]).abs().max() > 1e-3


def test_attention_weights_are_not_flat() -> None:
    kind, settings = text_class(_config("llama3"))
    settings._attn_implementation = "eager"
    model = tiny_model(kind, shrink(settings), 0)
    with torch.no_grad():
        weights = model(input_ids=_ids(), output_attentions=True).attentions
    assert min(layer[0, :, -1].max(-1).values.mean() for layer in weights) > 0.2  # flat: 1 / 40


def test_weights_follow_from_the_seed() -> None:
    kind, settings = text_class(_config("mixtral"))
    one, same, other = (tiny_model(kind, shrink(settings), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_learned_buffers_are_not_zero() -> None:
    kind, settings = text_class(_config("deepseek-v3"))
    buffers = dict(tiny_model(kind, shrink(settings), 0).named_buffers())
    biases = [value for name, value in buffers.items() if "e_score_correction_bias" in name]
    assert biases and all(bias.abs().min() > 0 for bias in biases)


def test_special_tokens_are_in_the_vocabulary() -> None:
    settings = transformers.LlamaConfig(
        vocab_size=128256,
        bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009],
        pad_token_id=128001,
    )
    small = shrink(settings)
    assert (small.bos_token_id, small.eos_token_id) == (0, [1, 2, 3])
    assert small.pad_token_id == 1
    assert shrink(transformers.LlamaConfig(pad_token_id=None)).pad_token_id is None


def test_the_config_itself_is_not_changed() -> None:
    settings = transformers.DbrxConfig(attn_config={"kv_n_heads": 8, "clip_qkv": 8})
    before = settings.to_dict()
    small = shrink(settings)
    assert settings.to_dict() == before
    assert (small.attn_config.kv_n_heads, small.attn_config.clip_qkv) == (2, 8)


@pytest.mark.parametrize("name", CASES)
def test_a_small_config_stays_as_it_is(name: str) -> None:
    small = shrink(_config(name))
    assert shrink(small).to_dict() == small.to_dict()


def test_dropout_is_switched_off() -> None:
    settings = transformers.GPT2Config()
    assert has_dropout(settings) and not has_dropout(shrink(settings))
    assert not has_dropout(transformers.LlamaConfig())
    assert has_dropout(transformers.PhimoeConfig(router_jitter_noise=0.01))


def test_layers_of_all_kinds_are_chosen() -> None:
    jamba = transformers.JambaConfig()
    assert chosen(jamba) == [0, 1, 2, 3, 4, 5]  # periods of 8 and 2: not the first of each
    deepseek = transformers.DeepseekV3Config()
    assert chosen(deepseek) == [0, 3]
    assert chosen(transformers.LlamaConfig()) == [0, 31]


def test_two_layers_have_their_real_size() -> None:
    found = two_layers(transformers.DeepseekV3Config())
    assert (num_layers(found), found.first_k_dense_replace) == (2, 1)
    assert (found.hidden_size, found.n_routed_experts) == (7168, 256)


def test_a_multimodal_config_gives_its_language_model() -> None:
    kind, settings = text_class(transformers.Gemma3Config())
    assert kind is transformers.Gemma3ForCausalLM
    assert settings.model_type == "gemma3_text"
    with pytest.raises(CannotShrink, match="T5Config: transformers has no causal language model"):
        text_class(transformers.T5Config())


def test_a_width_under_an_unknown_name_is_found() -> None:
    """A class whose sizes no group knows stays large; it is refused before it takes memory."""
    kind, settings = text_class(transformers.LlamaConfig())
    small = shrink(settings)
    small.intermediate_size = 110_080
    with pytest.raises(CannotShrink, match="parameters at its small size"):
        tiny_model(kind, small, 0)


def test_the_number_of_learnt_positions_is_no_unknown_length() -> None:
    """Rows beyond it have no embedding, however long examples may be."""
    settings = transformers.GPT2Config(n_positions=128, n_embd=64, n_layer=2, n_head=4)
    assert unknown_lengths(settings, shrink(settings, 2048), 2048) == []


@pytest.mark.parametrize("name", ["local_span", "window", "local_size", "lookback_tokens", "reach"])
@pytest.mark.parametrize("value", [48, 64, 128])
def test_a_length_of_any_unknown_name_is_found(name: str, value: int) -> None:
    settings = transformers.LlamaConfig(**{name: value})
    assert unknown_lengths(settings, shrink(settings, 2048), 2048) == [value]
    assert unknown_lengths(settings, shrink(settings, 2048), value - 1) == []


def test_an_integer_of_the_rotary_settings_is_no_length() -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000}
    settings = transformers.LlamaConfig(rope_parameters=rope, rotary_emb_base=10_000)
    assert unknown_lengths(settings, shrink(settings, 16_384), 16_384) == []


def test_the_size_of_an_image_is_no_length() -> None:
    """GIT's rows of text cannot be as long as its images are wide."""
    settings = transformers.GitConfig()
    assert unknown_lengths(settings, shrink(settings, 2048), 2048) == []


def test_sizes_with_a_rule_are_no_lengths() -> None:
    settings = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, vocab_size=128)
    assert unknown_lengths(settings, shrink(settings, 2048), 2048) == []
