"""Small values for a config's fields, by what a field's name means.

A config has widths, heads, experts, ranks, windows and vocabularies under many names. Each group of
names has one rule; fields that no group knows are kept, because they are flags, factors, and names.
Ratios that change a model's code path are kept: grouped heads, more than one expert per token,
groups of experts, a head width that is not hidden size / heads, several value heads per key head.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

HIDDEN, HEADS, VOCABULARY, WINDOW, ROTARY_LIMIT, POSITIONS = 64, 4, 128, 8, 16, 128
NEVER = 4096
"""A rotary limit that no row of a proof reaches."""
SPECIAL_TOKENS = 16
"""Ids below this may be special tokens of the small model; ids from here on are ordinary."""
_EXPERT_WIDTH, _RANK, _STATE, _INDEX_HEADS = 32, 16, 8, 2
_MOST_HEAD_WIDTH = 32
_UNEVEN_HEADS = 3
"""A number that does not divide the hidden size."""


class CannotShrink(ValueError):
    """A config that cannot be made small, with the reason; `two_layers` is the alternative."""


@dataclass(frozen=True)
class Scale:
    """The real sizes that others are relative to."""

    hidden: int
    small_hidden: int
    heads: int
    real_mamba_inner: int
    """Width of a state-space mixer."""
    mamba_inner: int
    """Small width of a state-space mixer, divided over its heads."""
    grouped_experts: bool
    ids: Mapping[int, int]
    """Small ids of the special tokens by their real ones."""

    def width(self, real: int) -> int:
        """A width in its ratio to the hidden size: 4 times, or a multiple of 16 up to twice.

        Only the hidden size itself becomes the small one, so that no ratio becomes 1.
        """
        if real in (0, self.hidden):
            return self.small_hidden if real else 0
        if real == 4 * self.hidden:  # some code computes it, whatever the config has
            return 4 * self.small_hidden
        near = round(real / self.hidden * self.small_hidden / 16) * 16
        if near == self.small_hidden:
            near += 16 if real > self.hidden else -16
        return min(real, 2 * self.small_hidden, max(16, near))

    def head_width(self, real: int) -> int:
        """A head's width in its ratio to hidden size / heads, a multiple of 8."""
        one = self.small_hidden / self.small_heads
        near = round(real * self.heads / self.hidden * one / 8) * 8
        return min(real, _MOST_HEAD_WIDTH, max(8, near))

    @property
    def small_heads(self) -> int:
        return self.few_heads(self.heads)

    def few_heads(self, real: int) -> int:
        """Query heads, which divide the small hidden size if and only if they divide the real one.

        A hidden size that is kept keeps them.
        """
        if self.hidden == self.small_hidden:
            return real
        if self.hidden % real:
            return 2 * _UNEVEN_HEADS if real > HEADS else _UNEVEN_HEADS
        return 2 ** min(HEADS, real).bit_length() // 2

    def kv(self, real: int) -> int:
        """Key heads: as many as query heads, one, or two, as in the real model."""
        if real >= self.heads:
            return self.small_heads
        return 1 if real == 1 else max(1, self.small_heads // 2)


def _few(most: int) -> Callable[[int, Scale], int]:
    return lambda real, _: min(real, most)


def _experts(real: int, scale: Scale) -> int:
    return min(real, 8 if scale.grouped_experts else 4)


_POSITIONS = (
    r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_target_positions"
    r"|context_length|model_max_length|max_source_positions)"
)
_RULES: tuple[tuple[str, Callable[[int, Scale], int]], ...] = (
    # Vocabularies
    (r"unpadded_vocab_size", _few(VOCABULARY - 8)),
    (r"((audio|shape|pronunciation|decoder)_)?vocab_size(_per_layer_input)?", _few(VOCABULARY)),
    # Experts and the widths of their MLPs
    (r"(num_(local_)?experts|n_routed_experts|moe_num_experts)", _experts),
    (r"(zero_expert_num|(moe_)?num_shared_experts|n_shared_experts)", _few(2)),
    (r"(num_experts_per_tok(en)?|moe_(top)?k|top_k_experts|moe_top_k)", _few(2)),
    (r"(n_group|num_expert_group)", _few(2)),
    (r"topk_group", _few(1)),
    (
        r"((moe|shared_expert|moe_shared_expert)_intermediate_size|expert_ffn_hidden_size)",
        _few(_EXPERT_WIDTH),
    ),
    (r"(moe_latent_size|router_hidden_size)", _few(_EXPERT_WIDTH)),
    # Heads
    (
        r"(num_attention_heads(_per_layer)?|n_heads?|num_heads|attention_heads"
        r"|(num_)?(en|de)coder_attention_heads|swa_num_attention_heads|num_query_groups)",
        lambda real, scale: scale.few_heads(real),
    ),
    (
        r"((swa_)?num_key_value_heads|num_global_key_value_heads|num_kv_heads|kv_n_heads)",
        lambda real, scale: scale.kv(real),
    ),
    (r"(linear_num_heads|linear_num_value_heads)", _few(HEADS)),
    (r"linear_num_key_heads", _few(2)),
    (r"(mamba_n_heads|n_mamba_heads|mamba_num_heads)", _few(HEADS)),
    (r"(index_n_heads|indexer_n_heads|heads_per_ngram)", _few(_INDEX_HEADS)),
    # Widths of heads
    (
        r"((swa_|global_)?head_dim|attention_head_(dim|size)|dim_head|d_head|d_kv|kv_channels"
        r"|swa_v_head_dim|rotary_dim)",
        lambda real, scale: scale.head_width(real),
    ),
    (r"qk_rope_head_dim", _few(8)),
    (r"(qk_nope_head_dim|v_head_dim|index(er)?_head_dim)", _few(16)),
    (r"linear_(key_|value_)?head_dim", _few(16)),
    # Widths
    (
        r"(hidden_size|d_model|n_embd|embedding_dim|emb_dim|embedding_size|lru_width|embed_dim"
        r"|word_embed_proj_dim|(backbone|attention)_hidden_size|(in|out)put_embedding_size"
        r"|dim_model_base|cross_attention_hidden_size)",
        lambda real, scale: scale.width(real),
    ),
    (
        r"(\w*intermediate_size(_mlp)?|\w*ffn_dim|ffn_hidden_size|dim_ff|dff|n_inner|d_inner"
        r"|feed_forward_size|hidden_size_per_layer_input|ple_embed_dim)",
        lambda real, scale: scale.width(real),
    ),
    (r"q_lora_rank", _few(_RANK + 8)),
    (r"(\w*lora_rank|\w+_rank|hc_lowrank|d_rel|prompt_mid_dim)", _few(_RANK)),
    # State-space layers
    (r"(mamba_d_state|ssm_state_size|state_size)", _few(_STATE)),
    (r"(mamba_)?n_?groups", _few(2)),
    (r"mamba_d_ssm", lambda real, scale: scale.mamba_inner),
    # N-gram tables
    (r"ngram_vocab_size_base", _few(VOCABULARY)),
    (r"(make_ngram_vocab_size_divisible_by|split_ngram_parts)", _few(2)),
    # RWKV halves its states after this many layers
    (r"rescale_every", _few(1)),
    # Windows and chunks
    (
        r"(sliding_window(_size)?|attention_chunk_size|attention_window_size|window_size"
        r"|keep_window_size|(mamba_)?chunk_size|block_size|local_attn_chunk_length"
        r"|lsh_attn_chunk_length|floor_scale|index_topk|indexer_budget|rel_extent|log_scaling_n_floor"
        r"|compress_rates)",
        _few(WINDOW),
    ),
    (r"local_attention", _few(2 * WINDOW)),  # ModernBERT's, half on each side
    (r"index_block_size", _few(WINDOW // 2)),
    (r"(index_topk_blocks|indexer_compress_ratio)", _few(2)),
    (r"(max_inference_chunksize)", _few(2 * WINDOW)),
    # Learned positions, and those that rotary frequencies do not depend on
    (_POSITIONS, _few(POSITIONS)),
)
_COMPILED = tuple((re.compile(pattern), rule) for pattern, rule in _RULES)
TABLES = re.compile(_POSITIONS)
"""Fields with the number of learned positions, if there are any."""
LIMITS = re.compile(
    r"(sliding_window(_size)?|attention_chunk_size|attention_window_size|window_size"
    r"|keep_window_size|(mamba_)?chunk_size|block_size|\w+_attn_chunk_length|floor_scale|index_topk"
    r"|indexer_budget|compress_rates"
    r"|rel_extent|log_scaling_n_floor|local_attention|max_inference_chunksize"
    r"|original_max_position_embeddings)"
)
"""Fields with a length beyond which something changes."""
RANDOM = re.compile(
    r"(?!classifier|summary)\w*(dropout(_prob|_p|_rate)?|pdrop|drop_path_rate|layer_?drop|jitter_noise)"
)
"""Fields that make a forward pass in training mode random."""
LAYER_DROP = re.compile(
    r"(?!\w*encoder)\w*(layer_?drop(out|_prob|_rate|_p)?|drop_path(_rate|_prob)?)"
)
"""Those of them with the share of passes in which a layer, or its branch, is left out."""
_TOKEN = re.compile(r"\w+_token_ids?")


def small_value(name: str, value: Any, scale: Scale) -> Any:
    """Returns the field's small value; lists and tables are changed element by element."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return [small_value(name, item, scale) for item in value]
    if isinstance(value, dict):
        return {key: small_value(name, item, scale) for key, item in value.items()}
    if isinstance(value, (int, float)) and RANDOM.fullmatch(name):
        return type(value)(0)
    if not isinstance(value, int):
        return value
    if _TOKEN.fullmatch(name):
        return scale.ids.get(value, value)
    for pattern, rule in _COMPILED:
        if pattern.fullmatch(name):
            return rule(value, scale)
    return value


def has_rule(name: str) -> bool:
    """True if the field's name says what it means."""
    return any(pattern.fullmatch(name) for pattern, _ in _COMPILED)


def special_ids(fields: Mapping[str, Any]) -> dict[int, int]:
    """Returns small ids for the special tokens in a config: equal ones stay equal."""
    found: set[int] = set()
    for name, value in fields.items():
        if _TOKEN.fullmatch(name):
            found |= {
                item
                for item in (value if isinstance(value, list) else [value])
                if isinstance(item, int) and item >= 0
            }
    return {real: small % SPECIAL_TOKENS for small, real in enumerate(sorted(found))}
