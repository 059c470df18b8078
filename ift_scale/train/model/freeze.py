"""Resolves `train.freeze` to parameters of a model, and what freezing them saves.

A frozen parameter gets no gradient and no optimizer state. A group (`config.keeping.GROUPS`) is
found by the modules, other patterns by the parameters' names.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ift_scale.config.keeping import GROUPS, LayerGroup, layer_group
from ift_scale.errors import ConfigError
from ift_scale.estimate.shape import Frozen, FrozenLayer, ModelShape
from ift_scale.train.model.decoder import decoder_layers

_MODULES = {
    "attention": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(r"mlp|feed_?forward|ffn|moe|experts|^fc\d$", re.IGNORECASE),
}
"""Names of the modules of a layer that make up a group, norms excluded."""


@dataclass(frozen=True)
class FrozenParameters:
    """The frozen parameters of a model. `tied`: one of them is both embedding and head."""

    names: frozenset[str]
    elements: int
    of: int
    """Elements of all parameters."""
    tied: bool

    def __str__(self) -> str:
        also = "; embeddings and head are one matrix, which is frozen as both" if self.tied else ""
        share = self.elements / self.of
        return (
            f"{len(self.names)} frozen parameters, {share:.1%} of {self.of:,} elements (train."
            f"freeze){also}"
        )


def resolve(model: Any, patterns: Sequence[str]) -> FrozenParameters:
    """Returns the parameters that `patterns` freeze; needs no weights.

    Raises ConfigError for a pattern that matches no parameter, and if all of them are frozen.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[int] = set()
    for number, pattern in enumerate(patterns):
        group = layer_group(pattern)
        found = (
            {id(p) for name, p in every.items() if fnmatchcase(name, pattern)}
            if group is None
            else set(_of_group(model, group))
        )
        if not found:
            raise ConfigError("settings", [_no_match(model, number, pattern)])
        frozen |= found
    unique = dict(model.named_parameters())
    names = frozenset(name for name, p in unique.items() if id(p) in frozen)
    elements = sum(_size(p) for p in unique.values() if id(p) in frozen)
    total = sum(map(_size, unique.values()))
    if len(names) == len(unique):
        problem = (
            f"train.freeze: {list(patterns)} freezes all {len(unique)} parameters of the model, so "
            "nothing is left to train; remove one of the patterns"
        )
        raise ConfigError("settings", [problem])
    head, embedding = _weight(model.get_output_embeddings()), _embedding(model)
    tied = head is not None and head is embedding and id(head) in frozen
    return FrozenParameters(names, elements, total, tied)


def apply(model: Any, patterns: Sequence[str]) -> None:
    """Exclude the parameters that `patterns` freeze from gradients."""
    if patterns:
        names = resolve(model, patterns).names
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in names)


def frozen_shape(shape: ModelShape, model: Any, patterns: Sequence[str]) -> ModelShape:
    """Returns the shape of `model`, in which the parameters that `patterns` match are frozen."""
    if not patterns:
        return shape
    found = resolve(model, patterns)
    parameters = dict(model.named_parameters())
    frozen = {id(parameters[name]) for name in found.names}
    layers = list(decoder_layers(model))
    # An expert's matrix multiplies some of the tokens only.
    chosen = [p.rows / p.matrices for layer, _ in shape.stack for p in layer.products]
    share = min(chosen, default=1.0)
    head = _weight(model.get_output_embeddings())
    return replace(
        shape,
        frozen=Frozen(
            parameters=found.elements,
            head=id(head) in frozen,
            layers=tuple(_frozen_layer(layer, frozen, share) for layer in layers),
            idle=_num_idle(model, layers, frozen),
        ),
    )


def _frozen_layer(layer: nn.Module, frozen: set[int], share: float) -> FrozenLayer:
    elements = keys = 0.0
    for name, parameter in layer.named_parameters():
        if id(parameter) in frozen and parameter.ndim > 1:
            size = _size(parameter) * (share if parameter.ndim > 2 else 1)
            elements += size
            keys += size * name.endswith(("k_proj.weight", "v_proj.weight"))
    return FrozenLayer(elements, keys)


def _num_idle(model: Any, layers: Sequence[nn.Module], frozen: set[int]) -> int:
    """Returns the number of the lowest layers that no gradient has to reach."""
    inside = {id(p) for layer in layers for p in layer.parameters()}
    for parameter in model.parameters():  # in the order of the modules
        if id(parameter) in inside:
            break
        if id(parameter) not in frozen:
            return 0
    trained = [any(id(p) not in frozen for p in layer.parameters()) for layer in layers]
    return trained.index(True) if any(trained) else len(layers)


def _of_group(model: Any, group: LayerGroup) -> Iterator[int]:
    """Yields the ids of a group's parameters. Raises ConfigError for layers that do not exist."""
    if group.name == "embeddings":
        yield from (
            id(p)
            for module in model.modules()
            if isinstance(module, nn.Embedding) or module is model.get_input_embeddings()
            for p in module.parameters(recurse=False)
        )
    elif group.name == "head":
        head = model.get_output_embeddings()
        yield from map(id, head.parameters() if head is not None else ())
    elif group.name == "norms" and group.first is None:
        yield from _of_norms(model)
    else:
        layers = list(decoder_layers(model))
        first, last = group.first or 0, len(layers) - 1 if group.last is None else group.last
        if last >= len(layers) or first > last:
            problem = (
                f"train.freeze: '{group}' names layers that do not exist: the model has layers 0 "
                f"to {len(layers) - 1}"
            )
            raise ConfigError("settings", [f"{problem}; change the range"])
        for layer in layers[first : last + 1]:
            yield from _of_layer(layer, group.name)


def _of_layer(layer: nn.Module, group: str) -> Iterator[int]:
    if group == "layers":
        yield from map(id, layer.parameters())
    elif group == "norms":
        yield from _of_norms(layer)
    else:
        for name, module in layer.named_modules():
            own = name.rpartition(".")[2]
            if _MODULES[group].search(own) and not _is_norm(module):
                yield from map(id, module.parameters())


def _of_norms(module: nn.Module) -> Iterator[int]:
    for part in module.modules():
        if _is_norm(part):
            yield from map(id, part.parameters(recurse=False))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _no_match(model: Any, number: int, pattern: str) -> str:
    """Returns the message for a pattern without a match, with the names that exist."""
    names = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name, _ in model.named_parameters())
    return (
        f"train.freeze[{number}]: '{pattern}' matches no parameter of the model; use one of the "
        f"groups {', '.join(GROUPS)} (of layers: mlp:0-5), or a pattern of these names: "
        f"{', '.join(names)}"
    )


def _size(parameter: Any) -> int:
    """Returns the elements of a parameter, which ZeRO-3 may have partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _weight(module: Any) -> Any:
    return getattr(module, "weight", None)


def _embedding(model: Any) -> Any:
    return _weight(model.get_input_embeddings())
