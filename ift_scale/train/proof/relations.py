"""Relations between the sizes in a config, kept in the small one.

Rules shorten each field alone (`small_fields`), so two widths could become equal that differ in the
real model, or a number of heads that no model can have could be repaired. Kept here: which widths
are equal, which number divides which, which one is larger, and whether a head's width is even. A
config that its class cannot run as it is then fails as a small model, too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ift_scale.train.proof.small_fields import Scale

_HEADS = r"num_attention_heads|n_heads?|num_heads|attention_heads|(num_)?decoder_attention_heads"
_EXPERTS = r"num_(local_)?experts|n_routed_experts|moe_num_experts"
_GROUPS = r"n_group|num_expert_group"
_DIVIDES = (
    (_HEADS, r"num_key_value_heads|num_global_key_value_heads|num_kv_heads|kv_n_heads"),
    (r"swa_num_attention_heads", r"swa_num_key_value_heads"),
    (r"linear_num_value_heads", r"linear_num_key_heads"),
    (r"mamba_n_heads|n_mamba_heads|mamba_num_heads|num_heads", r"(mamba_)?n_?groups"),
    (_EXPERTS, _GROUPS),
)
"""(whole, part): fields of which the second is to divide the first."""
_AT_MOST = (
    (r"num_experts_per_tok(en)?|moe_(top)?k|top_k_experts|moe_top_k", _EXPERTS, 1),
    (r"topk_group", _GROUPS, 1),
    (r"rotary_dim", "width of a head", 8),
)
"""(part, whole, step): fields of which the first is to be at most the second."""
_HEAD_WIDTHS = (
    r"(swa_|global_)?head_dim|attention_head_(dim|size)|dim_head|d_head|d_kv|kv_channels"
    r"|(swa_)?v_head_dim|qk_(nope|rope)_head_dim|index(er)?_head_dim|linear_(key_|value_)?head_dim"
)
_QUERY_PARTS = ("qk_nope_head_dim", "qk_rope_head_dim")
_RANKS = r"\w+_rank|hc_lowrank"
_WIDTHS = r"\w*intermediate_size(_mlp)?|expert_ffn_hidden_size|moe_latent_size|router_hidden_size"


def keep_widths(real: Mapping[str, Any], small: dict[str, Any], scale: Scale) -> None:
    """Makes widths equal that are equal in the real config, and different that are different.

    Compared by kind: widths of heads (hidden size / heads, and the sum of a query's parts, too),
    ranks, and widths of MLPs (the hidden size and four times that, too).
    """
    known = {scale.hidden: scale.small_hidden, 4 * scale.hidden: 4 * scale.small_hidden}
    _set_widths(real, small, _numbers(real, small, _WIDTHS), known, 16)
    _set_widths(real, small, _numbers(real, small, _RANKS), {}, 8)
    known = {scale.hidden // scale.heads: scale.small_hidden // scale.small_heads}
    heads = _numbers(real, small, _HEAD_WIDTHS)
    for name in heads:
        small[name] -= real[name] % 2 and 1 - small[name] % 2  # rotary embeddings need even ones
    parts = [name for name in _QUERY_PARTS if name in heads]
    _set_widths(real, small, parts, known, 8)
    if len(parts) == len(_QUERY_PARTS):
        known[sum(real[name] for name in parts)] = sum(small[name] for name in parts)
    _set_widths(real, small, [name for name in heads if name not in parts], known, 8)


def _set_widths(
    real: Mapping[str, Any],
    small: dict[str, Any],
    names: list[str],
    known: dict[int, int],
    step: int,
) -> None:
    """Sets fields to the small width that KNOWN has for their real one, or to the first free one,
    which is added to KNOWN."""
    for name in sorted(names, key=lambda name: (real[name], name)):
        if real[name] not in known:
            width = small[name]
            while width in known.values():
                width += step
            known[real[name]] = width
        small[name] = known[real[name]]


def keep_numbers(real: Mapping[str, Any], small: dict[str, Any], scale: Scale) -> None:
    """Makes a number divide another, or be at most another, if and only if the real ones do."""
    for whole, part in _pairs(real, small, _DIVIDES):
        if real[whole] % real[part] == 0:
            continue
        while small[whole] % small[part] == 0:
            small[part] += 1
    head = "width of a head"
    real = {**real, head: real.get("head_dim") or scale.hidden // scale.heads}
    wholes = small | {head: small.get("head_dim") or scale.small_hidden // scale.small_heads}
    for *names, step in _AT_MOST:
        for part, whole in _pairs(real, wholes, [names]):
            if real[part] >= real[whole]:
                small[part] = wholes[whole] + step * (real[part] > real[whole])
            else:
                small[part] = min(small[part], wholes[whole] - step)


def broken(fields: Mapping[str, Any], name: str) -> str | None:
    """Returns what the field would have to be for its relation to another; None if it is so."""
    for whole, part in _pairs(fields, fields, _DIVIDES):
        if name in (whole, part) and fields[whole] % fields[part]:
            if name == part:
                return f"must divide {whole} ({fields[whole]})"
            return f"must be a multiple of {part} ({fields[part]})"
    for part, whole in _pairs(fields, fields, [names for *names, _ in _AT_MOST]):
        if name in (whole, part) and fields[part] > fields[whole]:
            if name == part:
                return f"must be at most {whole} ({fields[whole]})"
            return f"must be at least {part} ({fields[part]})"
    return None


def _pairs(
    real: Mapping[str, Any], small: Mapping[str, Any], rules: Iterable[Sequence[str]]
) -> Iterator[tuple[str, str]]:
    for one, other in rules:
        for first in _numbers(real, small, one):
            for second in _numbers(real, small, other):
                yield first, second


def _numbers(real: Mapping[str, Any], small: Mapping[str, Any], pattern: str) -> list[str]:
    """Returns the fields of these names that are positive numbers in both configs."""
    return [
        name
        for name in real
        if re.fullmatch(pattern, name)
        and all(type(fields.get(name)) is int and fields[name] > 0 for fields in (real, small))
    ]
