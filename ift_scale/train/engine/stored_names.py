"""The names and shapes under which a model family's weights are stored in files.

transformers renames tensors when it loads a model, merges experts and splits fused projections.
Exports undo this, one group of parameters at a time: a group is one parameter in most cases, or the
few that are stored as one tensor. Under ZeRO-3 only one group has to be gathered at a time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)


class StoredGroup(NamedTuple):
    """Tensors of a model by their names, and the tensors stored for them.

    `stored` holds tensors without data on the meta device, by the names in the files.
    """

    tensors: dict[str, Tensor]
    stored: dict[str, Tensor]


def stored_groups(model: nn.Module) -> list[StoredGroup]:
    """Returns the parameters and persistent buffers in groups; tied ones occur once."""
    grouped: dict[str, dict[str, Tensor]] = {}
    stored_name = _stored_name(model)
    for name, tensor in _tensors(model):
        grouped.setdefault(stored_name(name), {})[name] = tensor
    return [StoredGroup(tensors, _without_data(model, tensors)) for tensors in grouped.values()]


def as_stored(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that are stored for the tensors of one group."""
    if not isinstance(model, PreTrainedModel):
        return tensors
    return revert_weight_conversion(model, dict(tensors))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of what is stored: for tied tensors the one that the others copy."""
    kept = model.state_dict().keys()
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    for name, tensor in parameters.items():
        is_copy = name in tied and parameters.get(tied[name]) is tensor
        if not is_copy and id(tensor) not in seen and name not in ignored:
            seen.add(id(tensor))
            yield name, tensor
    for name, buffer in model.named_buffers():
        if name in kept and name not in ignored:
            yield name, buffer


def _without_data(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    empty = {
        # `ds_shape`: the shape of a parameter that ZeRO-3 has partitioned
        name: torch.empty(getattr(t, "ds_shape", t.shape), dtype=t.dtype, device="meta")
        for name, t in tensors.items()
    }
    return as_stored(model, empty)


def _stored_name(model: nn.Module) -> Any:
    """Returns a function from a tensor's name to the first name that is stored for it.

    Tensors with the same one are stored together, as in `revert_weight_conversion` (5.19).
    """
    if not isinstance(model, PreTrainedModel):
        return lambda name: name
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = [
            conversion
            for conversion in get_model_conversion_mapping(model, add_legacy=False)
            if not isinstance(conversion, PrefixChange)
        ]
    reverse = [conversion.reverse_transform() for conversion in conversions[::-1]]
    renamings = [entry for entry in reverse if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in reverse if isinstance(entry, WeightConverter)]
    return lambda name: rename_source_key(name, renamings, converters, reverse=True)[0]
