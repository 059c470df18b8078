"""The input of one rank's forward pass: a packed row of tokens and the boundaries of its examples.

Shapes: T tokens of the packed row, R rows whose next token is supervised.
"""

from dataclasses import dataclass

import numpy as np
import torch
from ift_scale_kernels.linear_cross_entropy.kl import TopK
from torch import Tensor


def on_device(array: np.ndarray, dtype: type = np.int64, *, device: torch.device) -> Tensor:
    """Returns a tensor on the device; pinned memory lets the copy run without a wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass(frozen=True)
class VarlenMetadata:
    """Sequence lengths of variable-length attention: sequence i's queries see its keys, causally.

    Causality is aligned at the end: the last query of a sequence sees all of its keys.

    `cu_seqlens_q`, `cu_seqlens_k`: cumulative lengths with a leading 0, int32, on the device, as
    variable-length kernels expect them. With a shared prefix, the keys of the row are stored once
    per token, and `key_order` is the index that puts them in the sequences' order after the first
    `num_shared` keys were repeated `num_copies` times; it uses every key once.
    """

    seqlens_q: list[int]
    seqlens_k: list[int]
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    key_order: Tensor | None = None
    num_shared: int = 0
    num_copies: int = 0


@dataclass(frozen=True)
class PackedRows:
    """Boundaries of the packed row's examples, for attention and for the pruned last layer.

    `rows_R`: positions of the supervised rows in the packed row. `whole`: lengths for a layer that
    computes every row. `last`: lengths for the last layer, which computes the supervised rows only;
    its queries are each example's rows from the first supervised one to the end. `row_positions_R`:
    positions of the supervised rows among these queries; None if they are all of them, as in every
    single-turn example.
    """

    rows_R: Tensor
    whole: VarlenMetadata
    last: VarlenMetadata
    row_positions_R: Tensor | None


@dataclass(frozen=True)
class KLRows:
    """The divergence from the base model at the R supervised rows of a packed row.

    `weights_R`: factor of each row's divergence in the loss of the whole optimizer step, float32.
    `base`: the base's distributions; None if the model's frozen copy computes them.
    """

    weights_R: Tensor
    base: TopK | None


@dataclass(frozen=True)
class MicroBatch:
    """A packed row of T tokens with the labels and loss weights of its R supervised rows.

    `weights_R`: factor of each row's cross-entropy in the loss of the whole optimizer step,
    float32. `starts`: position of each example's own tokens, after the `num_shared` tokens that all
    examples share.
    """

    examples: list[int]
    ids_1T: Tensor
    positions_1T: Tensor
    labels_R: Tensor
    weights_R: Tensor
    packed: PackedRows
    starts: list[int]
    num_shared: int
    kl: KLRows | None = None
