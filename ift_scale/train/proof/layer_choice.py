"""A model's layers by kind, and a copy of its config with a few of them.

A layer's kind is everything that config.json states per layer: lists with one entry per layer
(`layer_types`, `no_rope_layers`, `mlp_layer_types`, also those that the config's class computes),
lists of layer numbers (`cross_attention_layers`), counts of layers at the start or the end
(`first_k_dense_replace`, `num_kv_shared_layers`) and periods (`decoder_sparse_step`).
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from transformers import PretrainedConfig

_COUNTS = (
    *("num_layers_per_stack", "num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("num_blocks", "layers"),
)
_SIDE_COUNTS = (
    *("encoder_layers", "decoder_layers"),
    *("num_encoder_layers", "num_decoder_layers"),
)
_COMPUTED = ("layer_types", "mlp_layer_types", "layers_block_type", "layers_num_experts")
"""Lists that some classes compute from other fields, so that `to_dict` does not have them."""
_NUMBERS = (
    *("cross_attention_layers", "moe_layers", "full_attn_idxs", "hybrid_layer_ids"),
    *("attn_layer_indices", "ple_layer_ids", "mlp_only_layers", "local_layer_ids"),
)
"""Lists of layer numbers."""
_FROM_ONE = ("ple_layer_ids",)
"""Those of them that count from 1."""
_AT_THE_START = (
    *("first_k_dense_replace", "num_dense_layers", "max_window_layers"),
    *("moe_layer_start_index", "dense_mlp_idx"),
)
"""Numbers of layers at the start that differ from the others."""
_AT_THE_END = ("num_kv_shared_layers",)
_LAST = ("moe_layer_end_index",)
"""Numbers of a last layer."""
_PERIODS = ("decoder_sparse_step", "moe_layer_interval", "moe_layer_freq")
_SHARED = {"zamba": "hybrid", "zamba2": "hybrid"}
"""Kinds of layers that share weights with each other, by model type: two of them are chosen."""
_FEWEST = 2


def num_layers(settings: PretrainedConfig) -> int:
    """Returns the number of decoder layers; LookupError if no known field has it."""
    fields = settings.to_dict()
    names = ("num_decoder_layers", "decoder_layers", *_COUNTS)
    computed = {name: getattr(settings, name, None) for name in names if name not in fields}
    for found in (*map(fields.get, names), *computed.values()):
        if isinstance(found, int):
            return found
    raise LookupError("no field has the number of layers")


def kinds(settings: PretrainedConfig, lists: Collection[str]) -> list[tuple[str, ...]]:
    """Returns each layer's kind; two layers are built alike if theirs are equal.

    LISTS are the names of the lists with one entry per layer.
    """
    num, fields = num_layers(settings), settings.to_dict()
    columns = [fields.get(name, getattr(settings, name, None)) for name in lists]
    for name, value in fields.items():
        if value is not None and name not in lists:
            columns += _columns(name, value, num)
    return [tuple(repr(column[layer]) for column in columns) for layer in range(num)]


def _columns(name: str, value: Any, num: int) -> Iterator[list[object]]:
    """Yields what a field that is not a list with one entry per layer states about each layer."""
    layers = range(num)
    if name in _NUMBERS:
        yield [layer + (name in _FROM_ONE) in value for layer in layers]
    elif name in _AT_THE_START:
        yield [layer < value for layer in layers]
    elif name in _AT_THE_END:
        yield [layer >= num - value for layer in layers]
    elif name in _LAST:
        yield [layer <= value % num for layer in layers]
    elif name in _PERIODS and isinstance(value, int) and value > 1:
        yield [(layer + 1) % value for layer in layers]
    elif name == "per_layer_config":
        yield [_own(value, layer) for layer in layers]


def _lists(settings: PretrainedConfig) -> list[str]:
    """Returns the names of the lists with one entry per layer."""
    num = num_layers(settings)
    found = {name: getattr(settings, name, None) for name in _COMPUTED} | settings.to_dict()
    return [
        name
        for name, value in found.items()
        if isinstance(value, (list, tuple)) and len(value) == num and name not in _NUMBERS
    ]


def _own(settings: dict[str, Any], layer: int) -> object:
    """Returns the layer's entry of `per_layer_config`, whose keys are padded numbers."""
    return next((value for key, value in settings.items() if int(key) == layer), None)


def chosen(settings: PretrainedConfig) -> list[int]:
    """Returns numbers of layers, in order, that show every kind; the last is of the last's kind.

    At least two, and as few as possible: the first of each kind and the last one, or, if periods
    do not allow that, the first few.
    """
    lists = _lists(settings)
    found = kinds(settings, lists)
    num = len(found)
    firsts = {kind: layer for layer, kind in reversed(list(enumerate(found)))}
    layers = {*firsts.values(), *_second_shared(settings)}
    if found[max(layers)] != found[-1] or (len(layers) < _FEWEST and num > 1):
        layers.add(num - 1)
    if _same(settings, sorted(layers), found, lists):
        return sorted(layers)
    for count in range(len(layers), num):
        complete = set(found[:count]) == set(found) and found[count - 1] == found[-1]
        if complete and _same(settings, range(count), found, lists):
            return list(range(count))
    return list(range(num))


def _second_shared(settings: PretrainedConfig) -> list[int]:
    shared = _SHARED.get(settings.model_type)
    names = getattr(settings, "layers_block_type", None) or ()
    return [layer for layer, name in enumerate(names) if name == shared][1:2]


def _same(
    settings: PretrainedConfig,
    layers: Sequence[int],
    found: Sequence[tuple[str, ...]],
    lists: Collection[str],
) -> bool:
    """True if a config with these layers has exactly their kinds."""
    try:
        made = rebuilt(settings, with_layers(settings, layers))
        return kinds(made, lists) == [found[layer] for layer in layers]
    except (ValueError, TypeError, LookupError):
        return False


def rebuilt(settings: PretrainedConfig, fields: dict[str, Any]) -> PretrainedConfig:
    """Returns a config of the same class and attention implementation from other fields."""
    made: PretrainedConfig = type(settings).from_dict(fields)
    made._attn_implementation = settings._attn_implementation
    return made


def with_layers(settings: PretrainedConfig, layers: Sequence[int]) -> dict[str, Any]:
    """Returns the config's fields with these layers only, renumbered from 0.

    Nested configs stay configs: some classes do not read back what their `to_dict` writes.
    """
    fields, num = settings.to_dict(), num_layers(settings)
    parts = {n: part for n, part in vars(settings).items() if isinstance(part, PretrainedConfig)}
    fields |= copy.deepcopy(parts)
    per_layer = _lists(settings)
    for name, value in list(fields.items()):
        if name in _SIDE_COUNTS:
            fields[name] = len(layers)
        elif name in _COUNTS:
            # HRM runs a stack of layers several times, and counts each time.
            fields[name] = max(1, value * len(layers) // num)
        elif value is None:
            continue
        elif name in per_layer:
            fields[name] = [value[layer] for layer in layers]
        elif name in _NUMBERS:
            first = int(name in _FROM_ONE)
            fields[name] = [new + first for new, old in enumerate(layers) if old + first in value]
        elif name in _AT_THE_START:
            fields[name] = sum(layer < value for layer in layers)
        elif name in _AT_THE_END:
            fields[name] = sum(layer >= num - value for layer in layers)
        elif name in _LAST:
            fields[name] = sum(layer <= value % num for layer in layers) - 1
        elif name == "per_layer_config":
            own = {new: _own(value, old) for new, old in enumerate(layers)}
            fields[name] = {f"{new:02d}": entry for new, entry in own.items() if entry is not None}
        elif name == "attention_types":  # GPT-Neo: [[kinds, repetitions], ...]
            listed = [kind for kinds, times in value for _ in range(times) for kind in kinds]
            fields[name] = [[[listed[layer] for layer in layers], 1]]
    return fields
