"""One rank's micro-batch: examples laid end to end without padding, positions restarting at each.

Nothing is computed that the loss does not need: an example ends with the token before its last supervised one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ift_scale.train.data import TokenizedSet


@dataclass(frozen=True)
class Packed:
    """Where the B examples of a packed row of T tokens lie, and its R wanted rows: what attention and the last layer need.

    `starts_B1`: the first token of each, and T, as int32 on the device, as variable-length kernels want it. `last_*`: the same for
    the last layer, whose queries are each example's rows from its first wanted one to its end, Q in all. `row_places_R`: where
    the wanted rows lie among these; None where they are all of them (always so in a single turn).
    """

    lengths: list[int]
    starts_B1: Tensor
    rows_R: Tensor
    last_lengths: list[int]
    last_starts_B1: Tensor
    row_places_R: Tensor | None


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of which R predict a supervised token; `packed.rows_R` are the places whose next token is supervised.

    `weights_R`: the factor of each row's cross-entropy in the loss of the whole optimizer step, float32.
    """

    examples: list[int]
    ids_1T: Tensor
    positions_1T: Tensor
    labels_R: Tensor
    weights_R: Tensor
    packed: Packed


def collate(examples: Sequence[int], tokens: TokenizedSet, scales: np.ndarray, device: torch.device) -> MicroBatch:
    """The examples as one packed row; `scales[i]` is the factor of example i's tokens in the loss, shape (all examples,).

    A rank without an example computes one token of weight 0, so that it takes part in every collective.
    """
    rows, factors = list(examples), scales
    if not rows:
        rows, factors = [int(tokens.lengths.argmin())], np.zeros_like(scales)
    parts = [np.arange(tokens.offsets[i], tokens.offsets[i] + tokens.computed_lengths[i]) for i in rows]
    wanted = [np.flatnonzero(tokens.supervised[part + 1]) for part in parts]
    source = np.concatenate(parts)
    lengths = [len(part) for part in parts]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    last_lengths = [length - int(w[0]) for length, w in zip(lengths, wanted, strict=True)]
    last_starts = np.concatenate([[0], np.cumsum(last_lengths)])
    rows_R = np.concatenate([w + start for w, start in zip(wanted, starts, strict=False)])
    places_R = np.concatenate([w - w[0] + start for w, start in zip(wanted, last_starts, strict=False)])

    def put(array: np.ndarray, dtype: type = np.int64) -> Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
        return whole.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else whole

    packed = Packed(
        lengths=lengths,
        starts_B1=put(starts, np.int32),
        rows_R=put(rows_R),
        last_lengths=last_lengths,
        last_starts_B1=put(last_starts, np.int32),
        row_places_R=None if len(rows_R) == last_starts[-1] else put(places_R),
    )
    return MicroBatch(
        examples=list(examples),
        ids_1T=put(tokens.ids[source])[None],
        positions_1T=put(np.concatenate([np.arange(length) for length in lengths]))[None],
        labels_R=put(tokens.ids[source[rows_R] + 1]),
        weights_R=put(np.repeat(factors[rows], [len(w) for w in wanted]), np.float32),
        packed=packed,
    )
