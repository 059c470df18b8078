"""The parts of a causal language model: its decoder, and the decoder's stack of layers."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ift_scale.train.model.attention import PathNotSupported


def decoder_of(model: Any) -> Any:
    """Returns the part of a causal language model before its head."""
    found = model.get_decoder()
    if found is not model:
        return found
    return next(part for part in model.children() if isinstance(part, PreTrainedModel))


def decoder_layers(model: Any) -> nn.ModuleList:
    """Returns the model's stack of decoder layers: its decoder's outermost list of modules.

    Raises PathNotSupported if it has none.
    """
    decoder = decoder_of(model)
    lists = [
        (name.count("."), -len(part), part)
        for name, part in decoder.named_modules()
        if isinstance(part, nn.ModuleList) and len(part)
    ]
    if not lists:
        raise PathNotSupported(f"{type(decoder).__name__} has no list of layers")
    return min(lists, key=lambda found: found[:2])[2]
