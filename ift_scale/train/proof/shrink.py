"""A causal language model's config, made small without changing what the model is.

In: the config of a real model. Out: a config of the same class with a hidden size of 64, a few
heads and experts, and just enough layers that every kind of layer occurs and the last layer is of
the real last layer's kind. Every flag, factor and pattern is kept. Windows, chunks and rotary
limits are 8 or 16 tokens, so that rows of 40 tokens pass all of them. Dropout and routing noise are
set to 0, because results of random passes cannot be compared; weights are in float32.
"""

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from ift_scale.train.proof.examples import PASSED
from ift_scale.train.proof.layer_choice import chosen, rebuilt, with_layers
from ift_scale.train.proof.relations import keep_numbers, keep_widths
from ift_scale.train.proof.small_fields import (
    HEADS,
    HIDDEN,
    LAYER_DROP,
    LIMITS,
    NEVER,
    POSITIONS,
    RANDOM,
    ROTARY_LIMIT,
    TABLES,
    CannotShrink,
    Scale,
    has_rule,
    small_value,
    special_ids,
)
from ift_scale.train.proof.tiny import tiny_model

__all__ = [
    "CannotShrink",
    "dropped_layers",
    "has_dropout",
    "limits",
    "shrink",
    "text_class",
    "tiny_model",
    "two_layers",
    "unknown_lengths",
]

_QUERY_HEADS = ("num_attention_heads", "decoder_attention_heads", "num_decoder_attention_heads")
_WIDER = {"xlstm": 128}
"""Hidden sizes of classes that need more than `HIDDEN`: xLSTM's keys are multiples of 64."""
_ROPES = ("rope_parameters", "rope_scaling")
_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len")
_SWITCHING = ("dynamic", "longrope", "su")
"""Rotary types whose frequencies depend on the longest row of a pass."""
_LENGTH_DEPENDENT = ("dynamic", "longrope", "su", "yarn", "llama3")


def text_class(settings: PretrainedConfig) -> tuple[Any, PretrainedConfig]:
    """Returns (class, config) of the causal language model, the one in a multimodal model if any.

    Raises CannotShrink if transformers has no causal language model for the config.
    """
    text = settings.get_text_config()
    for config in (text, settings):
        if (kind := MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)) is not None:
            return kind, text if kind.config_class is type(text) else config
    raise CannotShrink(f"{type(settings).__name__}: transformers has no causal language model")


def shrink(
    settings: PretrainedConfig, max_length: int | None = None, hidden: int = HIDDEN
) -> PretrainedConfig:
    """Returns a small config of the same class; CannotShrink if its fields do not allow one.

    `max_length`: length in tokens that no row exceeds. Rotary frequencies that change at a length
    beyond it are left as they are up to there. `hidden`: about the small model's hidden size.
    """
    try:
        fields = with_layers(settings, chosen(settings))
        scale = _scale(settings, fields, hidden)
        small = _small(fields, scale)
        _lengthen_tables(fields, small, max_length)
        _shrink_positions(fields, small, max_length, scale.small_hidden // scale.small_heads)
        return rebuilt(settings, small)
    except Exception as error:
        name = type(settings).__name__
        raise CannotShrink(f"{name}: {type(error).__name__}: {error}") from error


def two_layers(settings: PretrainedConfig) -> PretrainedConfig:
    """Returns the config with as few of its layers as show every kind, at their real size.

    Without dropout, too. Raises CannotShrink if its fields do not state its layers.
    """
    try:
        fields = with_layers(settings, chosen(settings))
        off = {name: 0.0 for name, value in fields.items() if RANDOM.fullmatch(name) and value}
        return rebuilt(settings, fields | off)
    except Exception as error:
        name = type(settings).__name__
        raise CannotShrink(f"{name}: {type(error).__name__}: {error}") from error


def limits(settings: PretrainedConfig) -> list[int]:
    """Returns the config's lengths in tokens beyond which something changes, ascending."""
    fields = settings.to_dict()
    found = {*_limits(fields), *_products(fields), *_rotary_limits(fields)}
    return sorted(length for length in found if 0 < length < NEVER)


def unknown_lengths(
    settings: PretrainedConfig, small: PretrainedConfig, max_length: int | None
) -> list[int]:
    """Returns the numbers of a small config that may be lengths that no rule knows, such as a
    window under a name of a folder's own code: kept as they are, and reached by `max_length`."""
    return _unknown(settings.to_dict(), small.to_dict(), max_length)


def _unknown(real: dict[str, Any], small: dict[str, Any], max_length: int | None) -> list[int]:
    longest = min([max_length or 0, *(positions - POSITIONS // 4 for positions in _tables(real))])
    kept = set(_numbers(real)) & set(_numbers(small))
    return sorted(
        {value for name, value in kept if PASSED < value <= longest and _may_be_length(name)}
    )


def _tables(fields: dict[str, Any]) -> list[int]:
    return [value for name, value in fields.items() if TABLES.fullmatch(name) and value]


def _lengthen_tables(fields: dict[str, Any], made: dict[str, Any], max_length: int | None) -> None:
    """Gives tables of learned positions a row for each token of the examples (`examples.build`)."""
    longest = max(_unknown(fields, made, max_length), default=0)
    for name, value in made.items():
        if longest and TABLES.fullmatch(name) and value:
            made[name] = max(value, min(fields[name], longest + POSITIONS // 4))


def _numbers(fields: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields (name, number) of all whole numbers, also in tables and lists, but not of the rotary
    settings: those have rules of their own."""
    for name, value in fields.items():
        if isinstance(value, dict) and name not in _ROPES:
            yield from _numbers(value)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if type(item) is int:
                yield str(name), item


def _may_be_length(name: str) -> bool:
    """True if a number that is kept may be a length in tokens.

    A limit that is kept although a rule would shorten it is in a table, which no rule reads.
    Numbers of positions are left to `_rotary_limits` and `_lengthen_tables`.
    """
    if _NO_LENGTH.search(name):
        return False
    return not has_rule(name) or LIMITS.fullmatch(name) is not None


_NO_LENGTH = re.compile(
    r"_dim|_ids?$|channel|image|crop|codebook|bins|buckets|seed|multiple|theta|(^|_)base$"
    r"|position_embeddings"
)


def has_dropout(settings: PretrainedConfig) -> bool:
    """True if a forward pass in training mode is random, by the config's own fields."""
    return _is_random(settings.to_dict())


def dropped_layers(settings: PretrainedConfig) -> dict[str, float]:
    """Returns the text model's fields by which training leaves out whole layers at random."""
    fields = settings.get_text_config().to_dict()
    return {name: value for name, value in fields.items() if LAYER_DROP.fullmatch(name) and value}


def _is_random(fields: dict[str, Any]) -> bool:
    return any(
        _is_random(value) if isinstance(value, dict) else RANDOM.fullmatch(str(name)) and value
        for name, value in fields.items()
    )


def _limits(fields: dict[str, Any]) -> Iterator[int]:
    for name, value in fields.items():
        if not LIMITS.fullmatch(name):
            continue
        for length in value.values() if isinstance(value, dict) else [value]:
            if type(length) is int:
                yield length


def _products(fields: dict[str, Any]) -> Iterator[int]:
    """Yields the limits that are a product of fields."""
    rates, chosen = fields.get("compress_rates"), fields.get("index_topk")
    if rates and chosen:  # DeepSeek V4 selects among compressed tokens
        yield chosen * max(rates.values())
    if blocks := fields.get("num_random_blocks"):  # BigBird attends fully to shorter rows
        yield (5 + 2 * blocks) * fields["block_size"]


def _rotary_limits(fields: dict[str, Any]) -> Iterator[int]:
    longest = next((fields[name] for name in _LONGEST if fields.get(name)), 0)
    for rope in _ropes(fields):
        if rope.get("rope_type", rope.get("type")) in _LENGTH_DEPENDENT:
            yield rope.get("original_max_position_embeddings") or longest


def _ropes(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rotary settings: one set for each kind of layer, or one for all."""
    for name in _ROPES:
        table = fields.get(name) or {}
        yield from [value for value in table.values() if isinstance(value, dict)] or [table]


def _scale(settings: PretrainedConfig, fields: dict[str, Any], small: int) -> Scale:
    hidden = settings.hidden_size
    heads = next((found for name in _QUERY_HEADS if (found := getattr(settings, name, None))), 1)
    expand = next((fields[n] for n in ("mamba_expand", "expand") if fields.get(n)), 1)
    inner = fields.get("mamba_d_ssm") or 0
    small_hidden = min(hidden, max(small, _WIDER.get(settings.model_type, 0)))
    if hidden > small_hidden and hidden % heads == 0 and hidden // heads % 2:
        small_hidden -= HEADS  # the width of a head is odd, too
    return Scale(
        hidden=hidden,
        small_hidden=small_hidden,
        heads=heads,
        real_mamba_inner=inner or int(expand * hidden),
        mamba_inner=min(128, max(32, inner * small_hidden // hidden // 32 * 32))
        if inner
        else int(expand * small_hidden),
        grouped_experts=any((fields.get(n) or 1) > 1 for n in ("n_group", "num_expert_group")),
        ids=special_ids(fields),
    )


def _small(fields: dict[str, Any], scale: Scale) -> dict[str, Any]:
    parts = {name: part for name, part in fields.items() if isinstance(part, PretrainedConfig)}
    made = {
        name: copy.deepcopy(value) if name in _ROPES else small_value(name, value, scale)
        for name, value in fields.items()
        if name not in parts and name != "per_layer_config"
    }
    made.pop("quantization_config", None)
    if "dtype" in made:
        made["dtype"] = "float32"
    keep_widths(fields, made, scale)
    _restore_products(fields, made, scale)
    keep_numbers(fields, made, scale)
    if "per_layer_config" in fields:
        made["per_layer_config"] = {
            layer: _small_table(entry, fields, made, scale)
            for layer, entry in fields["per_layer_config"].items()
        }
    return made | {name: _small_part(part, fields, made, scale) for name, part in parts.items()}


def _small_part(
    part: PretrainedConfig, fields: dict[str, Any], made: dict[str, Any], scale: Scale
) -> PretrainedConfig:
    """Returns a nested config made small: as a model of its own, or as a part of this one."""
    if hasattr(part, "hidden_size") and hasattr(part, "num_hidden_layers"):
        return shrink(part, hidden=scale.small_hidden)
    real = part.to_dict()
    for name, value in _small_table(real, fields, made, scale).items():
        if hasattr(part, name) and value != real[name]:
            setattr(part, name, value)
    return part


def _small_table(
    table: dict[str, Any], fields: dict[str, Any], made: dict[str, Any], scale: Scale
) -> dict[str, Any]:
    """Returns a table's fields made small, in their relations to each other and to the config's."""
    real = fields | table
    small = made | {name: small_value(name, value, scale) for name, value in table.items()}
    keep_widths(real, small, scale)
    keep_numbers(real, small, scale)
    return {name: small[name] for name in table}


def _restore_products(fields: dict[str, Any], made: dict[str, Any], scale: Scale) -> None:
    """Sets the fields that equal a product or a sum of others."""
    if made.get("qk_head_dim"):
        made["qk_head_dim"] = made["qk_nope_head_dim"] + made["qk_rope_head_dim"]
    heads = next(
        (n for n in ("mamba_n_heads", "n_mamba_heads", "mamba_num_heads") if made.get(n)), None
    )
    if heads is None and "state_size" in made and "num_heads" in made:
        heads = "num_heads"
    widths = ("mamba_d_head", "mamba_headdim", "mamba_head_dim")
    for name in ("head_dim",) if heads == "num_heads" else widths:
        if heads and isinstance(made.get(name), int):
            differs = fields[heads] * fields[name] != scale.real_mamba_inner
            made[name] = scale.mamba_inner // made[heads] + 8 * differs
    if isinstance(pre := fields.get("query_pre_attn_scalar"), (int, float)) and "head_dim" in made:
        made["query_pre_attn_scalar"] = type(pre)(pre * made["head_dim"] / fields["head_dim"])
    if (keys := made.get("linear_num_key_heads")) and "linear_num_value_heads" in made:
        several = fields["linear_num_value_heads"] > fields["linear_num_key_heads"]
        made["linear_num_value_heads"] = keys * (2 if several else 1)
    if dims := made.get("axial_pos_embds_dim"):  # Reformer's position tables, by row and column
        made["axial_pos_embds_dim"] = _sections(dims, made["hidden_size"])
        made["axial_pos_shape"] = [POSITIONS // 8, 8]


def _shrink_positions(
    fields: dict[str, Any], made: dict[str, Any], max_length: int | None, head_dim: int
) -> None:
    """Sets rotary limits and the lengths of rotary lists."""
    longest = next((name for name in _LONGEST if made.get(name)), None)
    width = made.get("qk_rope_head_dim") or made.get("head_dim") or head_dim
    whole = fields.get("original_max_position_embeddings")
    for rope in _ropes(made):
        kind = rope.get("rope_type", rope.get("type"))
        original = rope.get("original_max_position_embeddings") or whole
        original = original or (fields[longest] if longest else 0)
        limit = ROTARY_LIMIT
        if kind in _SWITCHING and max_length is not None and max_length <= original:
            limit = NEVER
        if longest and kind in _LENGTH_DEPENDENT:
            made[longest] = math.ceil(limit * max(1.0, fields[longest] / original))
        rotated = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
        for name, value in rope.items():
            if name == "original_max_position_embeddings":
                rope[name] = limit
            elif name in ("short_factor", "long_factor"):
                rope[name] = _spread(value, rotated)
            elif name == "mrope_section":
                rope[name] = _sections(value, rotated)
        if whole and kind:
            made["original_max_position_embeddings"] = limit


def _spread(values: list[float], count: int) -> list[float]:
    """Returns `count` of the values, evenly from the first to the last."""
    step = (len(values) - 1) / max(1, count - 1)
    return [values[round(step * index)] for index in range(count)]


def _sections(sections: list[int], total: int) -> list[int]:
    """Returns sections of about the same shares that sum to `total`."""
    ends = [round(sum(sections[: n + 1]) / sum(sections) * total) for n in range(len(sections))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
