"""Sizes of any causal language model of transformers: built on the meta device, walked and traced.

In: a config.json's dict. Out: the arguments of `shape.ModelShape`. Neither weights nor their memory
are needed. Takes fractions of a second after torch and transformers are imported, because only two
decoder layers of each kind run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from ift_scale.errors import DataError, Place
from ift_scale.estimate import trace
from ift_scale.estimate.layers import (
    ACTIVATIONS,
    KERNEL_TYPES,
    Attention,
    Bytes,
    LayerShape,
    Product,
    SavedBytes,
    Weights,
    dense,
    pair_flops,
)
from ift_scale.estimate.trace import Scope
from ift_scale.models import config_class
from ift_scale.models.config_errors import refusing

# Traced examples are multiples of this and of the chunks that recurrent layers pad them to.
_CHUNK = 64
_DENSE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# Attributes of modules that number the layers and so differ between equal ones.
_NUMBERS = ("idx", "index", "id", "number", "nb")


def walk(
    config: Mapping[str, Any], source: str | Path = "config.json", runs_own_code: bool = False
) -> dict[str, Any]:
    """Returns the arguments of `ModelShape`. Raises DataError like `config_class.build`, and if
    the forward pass fails, as when it depends on values, which meta tensors do not have."""
    fields = dict(config)

    def measure(fields: dict[str, Any]) -> _Measured:
        settings = config_class.raw_settings(fields, source, runs_own_code)
        return _measure(config_class.empty_model(settings, source, runs_own_code).train())

    model = config_class.build(fields, source, runs_own_code).to("meta").train()
    head = model.get_output_embeddings()
    if head is None:
        raise DataError(Place(source), "its model has no head over the vocabulary", "Give another")
    with refusing(source, fields, "run the model without weights to trace its sizes", measure):
        measured = _measure(model)
    if not measured.stack:
        raise DataError(
            Place(source, field="num_hidden_layers"), "the model has no layers", "Give another", 0
        )
    embedding = model.get_input_embeddings()
    vocab, hidden = head.weight.shape
    return {
        "family": model.config.model_type,
        "hidden": hidden,
        "vocab": vocab,
        "tied": embedding is not None and embedding.weight is head.weight,
        "parameters": sum(p.numel() for p in model.parameters()),
        "fused_mlp": _fusable(model),
        "stack": measured.stack,
        "ends": measured.ends,
        "working": measured.working,
    }


def _fusable(model: Any) -> bool:
    """True if fused kernels support the MLPs' activation."""
    if model.config.model_type not in KERNEL_TYPES:
        return False
    known = {type(ACT2FN[name]) for name in ACTIVATIONS}
    return all(type(m.act_fn) in known for m in model.modules() if hasattr(m, "gate_proj"))


@dataclass(frozen=True)
class _Measured:
    stack: tuple[tuple[LayerShape, int], ...]
    ends: LayerShape
    working: tuple[Bytes, Bytes] | None


@dataclass(frozen=True)
class _Chosen:
    """A layer that runs for `count` equal ones, `last` of them the last in the model."""

    number: int
    count: int
    last: int


def _measure(model: Any) -> _Measured:
    """Traces two layers of each kind: the first layer of all may get its input in another
    precision. If these do not run without the others, all layers run."""
    place, name, layers = _decoder_layers(model)
    kinds: dict[str, list[int]] = {}
    for number, layer in enumerate(layers):
        kinds.setdefault(_signature(layer), []).append(number)
    chosen = [_Chosen(equal[0], 1, equal[0]) for equal in kinds.values()]
    chosen += [_Chosen(e[1], len(e) - 1, e[-1]) for e in kinds.values() if len(e) > 1]
    chosen.sort(key=lambda one: one.number)
    outside = _outside(model, layers)
    try:
        with _only(model, place, name, [one.number for one in chosen]):
            return _measured(model, layers, chosen, outside)
    except Exception:
        if len(chosen) == len(layers):
            raise
        every = [_Chosen(number, 1, number) for number in range(len(layers))]
        return _measured(model, layers, every, outside)


def _measured(
    model: Any, every: list[nn.Module], chosen: list[_Chosen], outside: list[nn.Parameter]
) -> _Measured:
    """Returns the sizes from runs of the chosen layers."""
    layers = [every[one.number] for one in chosen]
    names = {id(p): name for name, p in model.named_parameters()}
    lengths = short, long = _lengths(model)
    first = trace.run(model, layers, short)
    plain = [_dense(*one, short) for one in zip(layers, first.layers, strict=True)]
    if all(plain) and not first.ends.weights:
        ends = _shape(outside, names, _Series((short,), [first.ends]))
        return _Measured(_stack(plain, chosen), ends, None)
    runs = [first, trace.run(model, layers, long)]
    model.to(torch.bfloat16)
    runs += [trace.run(model, layers, short), trace.run(model, layers, long)]
    shapes = [
        _shape(list(layer.parameters()), names, _Series(lengths, [run.layers[n] for run in runs]))
        for n, layer in enumerate(layers)
    ]
    ends = _shape(outside, names, _Series(lengths, [run.ends for run in runs]))
    of_layers = _bytes(lengths, [run.working for run in runs])
    of_ends = _bytes(lengths, [run.working_of_ends for run in runs])
    return _Measured(_stack(shapes, chosen), ends, (of_layers, of_ends))


def _stack(
    shapes: Sequence[LayerShape | None], chosen: list[_Chosen]
) -> tuple[tuple[LayerShape, int], ...]:
    """Returns distinct shapes with their number of layers, ordered by the last of each."""
    counts: dict[LayerShape, int] = {}
    for shape, one in sorted(zip(shapes, chosen, strict=True), key=lambda pair: pair[1].last):
        assert shape is not None
        counts[shape] = counts.pop(shape, 0) + one.count
    return tuple(counts.items())


def _decoder_layers(model: Any) -> tuple[nn.Module, str, list[nn.Module]]:
    """Returns (module, name of its list of decoder layers, the layers): the outermost list with the
    most parameters; no layers if there is no list."""
    found: list[tuple[int, nn.Module, str, list[nn.Module]]] = []

    def search(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList):
                size = sum(p.numel() for p in child.parameters())
                found.append((size, module, name, list(child)))
            else:
                search(child)

    search(model.base_model)
    if not found:
        return model, "", []
    _, module, name, layers = max(found, key=lambda one: one[0])
    return module, name, layers


def _signature(layer: nn.Module) -> str:
    """Returns a text that is equal for layers that compute the same with other weights."""
    parts: list[Any] = [
        (name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()
    ]
    for name, module in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str) and not key.endswith(_NUMBERS)
        }
        parts.append((name, type(module).__name__, sorted(settings.items())))
    return str(parts)


@contextmanager
def _only(model: Any, place: nn.Module, name: str, chosen: list[int]) -> Iterator[None]:
    """Leaves only the chosen layers in a model, and their entries in its config's lists."""
    if not chosen:
        yield
        return
    whole, settings = getattr(place, name), vars(model.config)
    lists = {
        key: value
        for key, value in settings.items()
        if isinstance(value, list | tuple) and len(value) == len(whole)
    }
    setattr(place, name, nn.ModuleList(whole[n] for n in chosen))
    settings |= {key: [value[n] for n in chosen] for key, value in lists.items()}
    try:
        yield
    finally:
        settings |= lists
        setattr(place, name, whole)


def _outside(model: Any, layers: list[nn.Module]) -> list[nn.Parameter]:
    inside = {id(p) for layer in layers for p in layer.parameters()}
    return [p for p in model.parameters() if id(p) not in inside]


def _lengths(model: Any) -> tuple[int, int]:
    """Returns two lengths of examples that differ from every size of a weight: weights' gradients
    are known by their shapes."""
    sizes = {size for p in model.parameters() for size in p.shape}
    most = getattr(model.config, "max_position_embeddings", None) or 0
    most = most if most > 0 else 1 << 20
    chunk = max(_CHUNK, *(getattr(module, "chunk_size", 0) for module in model.modules()))
    fitting = [n for n in range(chunk, 32 * chunk, chunk) if n not in sizes and n <= most]
    if len(fitting) < 2:
        fitting = [n for n in range(most // 2, most + 1) if n not in sizes]
    return fitting[0], fitting[1]


def _dense(layer: nn.Module, scope: Scope, tokens: int) -> LayerShape | None:
    """Returns the sizes of a layer as in `layers.dense`, None for another one."""
    weights = dict(layer.named_parameters())
    linears = {
        name.rpartition(".")[2]: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    norms = {
        name.rpartition(".")[2]: module.weight.numel()
        for name, module in layer.named_modules()
        if type(module).__name__.endswith("RMSNorm") and getattr(module, "weight", None) is not None
    }
    once = all(len(used) == 1 and used[0][0] == tokens for used in scope.weights.values())
    known = 7 + len(norms) + sum(module.bias is not None for module in linears.values())
    if linears.keys() != _DENSE or len(scope.weights) != 7 or not once or len(weights) != known:
        return None
    if len(scope.attention) != 1 or scope.mixing_flops:
        return None
    heads, kv_heads, head_dim, value_dim = scope.attention[0]
    hidden, intermediate = linears["gate_proj"].in_features, linears["gate_proj"].out_features
    of_heads = norms.keys() & {"q_norm", "k_norm"}
    usual = value_dim == head_dim and linears["q_proj"].out_features == heads * head_dim
    if not usual or any(norms[name] != hidden for name in norms.keys() - of_heads):
        return None
    counted = dense(
        hidden,
        intermediate,
        heads,
        kv_heads,
        head_dim,
        norms=len(norms) - len(of_heads),
        head_norms=len(of_heads) == 2,
    )
    return replace(counted, weights=_weights(list(weights.values())))


def _weights(parameters: list[nn.Parameter]) -> Weights:
    sizes = [p.numel() for p in parameters]
    small = sum(p.numel() for p in parameters if p.dim() == 1)
    return Weights(sum(sizes), len(sizes), max(sizes, default=0), small)


@dataclass(frozen=True)
class _Series:
    """The same scope in runs at each length: in float32, then in bfloat16 (or only the first)."""

    lengths: tuple[int, ...]
    scopes: list[Scope]


def _shape(parameters: list[nn.Parameter], names: Mapping[int, str], series: _Series) -> LayerShape:
    tokens, first = series.lengths[0], series.scopes[0]
    products = []
    for weight, used in first.weights.items():
        rows = sum(one[0] for one in used) / tokens
        _, inputs, outputs, matrices = used[0]
        keys = names.get(weight, "").endswith(("k_proj.weight", "v_proj.weight"))
        products.append(Product(inputs, outputs, rows, matrices, keys))
    attention = _attention(first.attention)
    saved, mixing, pairs = None, first.mixing_flops / tokens, 0.0
    if len(series.scopes) > 1:
        saved = SavedBytes(
            *(
                _bytes(series.lengths, [getattr(scope, name) for scope in series.scopes])
                for name in ("kept", "outputs", "entering")
            )
        )
        mixing, pairs = _line(series.lengths, [s.mixing_flops for s in series.scopes[:2]])
    return LayerShape(
        tuple(products),
        _weights(parameters),
        attention=attention,
        pair_flops=pairs + (pair_flops(attention) if attention else 0),
        mixing_flops=mixing,
        normed=first.normed / tokens,
        activated=first.activated / tokens,
        saved=saved,
    )


def _attention(calls: list[tuple[int, int, int, int]]) -> Attention | None:
    """Returns the heads of all calls of attention in a layer, with their mean sizes."""
    if not calls:
        return None
    heads, kv_heads = sum(call[0] for call in calls), sum(call[1] for call in calls)
    keys = sum(call[0] * call[2] for call in calls) / heads
    values = sum(call[0] * call[3] for call in calls) / heads
    return Attention(heads, kv_heads, keys, values)


def _line(lengths: tuple[int, ...], totals: list[int]) -> tuple[float, float]:
    """Returns (per token, per token and token of the example) of totals at two lengths.

    A constant total, such as a cast weight, counts as neither.
    """
    short, long = lengths
    pairs = (totals[1] / long - totals[0] / short) / (long - short)
    if pairs <= 0:
        return (totals[1] - totals[0]) / (long - short), 0.0
    return totals[0] / short - pairs * short, pairs


def _bytes(lengths: tuple[int, ...], totals: list[int]) -> Bytes:
    """Returns bytes per token of totals at two lengths in float32, then in bfloat16."""
    wide, wide_pairs = _line(lengths, totals[:2])
    narrow, narrow_pairs = _line(lengths, totals[2:])
    element, pair_element = (wide - narrow) / 2, (wide_pairs - narrow_pairs) / 2
    return Bytes(element, narrow - 2 * element, pair_element, narrow_pairs - 2 * pair_element)
