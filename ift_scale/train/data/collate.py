"""Collates one rank's micro-batch: examples laid end to end without padding.

Positions restart at each example. Only tokens that the loss depends on are computed, and none
twice: an example ends with the row that predicts its last supervised token, and a prefix that all
examples share (such as a template's system prompt) is placed once, before them. A causal model
computes the same values for the prefix in every example, so the examples read its keys and values
there and send their gradients there.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.micro_batch import MicroBatch, PackedRows, VarlenMetadata, on_device
from ift_scale.train.data.packing import Step

# Gathering a shorter prefix's keys and values for every example costs more than sharing saves.
_MIN_SHARED = 8


def num_shared(examples: Sequence[int], tokens: TokenizedSet) -> int:
    """Returns the length of the examples' common prefix, up to the first supervised row.

    Returns 0 if sharing is not worthwhile.
    """
    if len(examples) < 2:
        return 0
    limit = int(tokens.first_rows[list(examples)].min())
    prefixes = [tokens.ids[tokens.offsets[i] : tokens.offsets[i] + limit] for i in examples]
    differs = (np.stack(prefixes[1:]) != prefixes[0]).any(axis=0)
    length = int(differs.argmax()) if differs.any() else limit
    return length if length >= _MIN_SHARED else 0


def shared_prefixes(step: Step, tokens: TokenizedSet) -> list[tuple[int, int]]:
    """Returns (shared tokens, number of examples) of every rank's micro-batches in a step."""
    return [
        (num_shared(examples, tokens), len(examples))
        for micro in step
        for examples in micro
        if examples
    ]


def num_saved(prefixes: Sequence[tuple[int, int]]) -> int:
    """Returns the number of tokens that sharing the prefixes saves."""
    return sum(length * (examples - 1) for length, examples in prefixes)


def collate(
    examples: Sequence[int],
    tokens: TokenizedSet,
    scales: np.ndarray,
    device: torch.device,
    share: bool = True,
    whole: bool = False,
) -> MicroBatch:
    """Returns the examples as one packed row.

    `scales`: factor of each example's tokens in the loss, shape (all examples,). `share`: compute
    a common prefix once. `whole`: keep the tokens after an example's last supervised row. Without
    examples, one of weight 0 is computed, because every rank must take part in every collective.
    """
    chosen, factors = list(examples), scales
    if not chosen:
        chosen, factors = [tokens.stand_in], np.zeros_like(scales)
    shared = num_shared(chosen, tokens) if share else 0

    # Each example's own tokens, as positions in the set: from the end of the shared prefix to the
    # row that predicts the last supervised token, or to the example's end.
    firsts, computed = tokens.offsets[chosen], tokens.computed_lengths[chosen]
    lengths = tokens.lengths[chosen] if whole else computed
    own = [
        np.arange(first + shared, first + length)
        for first, length in zip(firsts, lengths, strict=True)
    ]
    source_T = np.concatenate([np.arange(firsts[0], firsts[0] + shared), *own])
    own_lengths = [len(part) for part in own]
    starts = shared + _cumulative(own_lengths)

    # A row is supervised if the token after it is: it predicts that token.
    supervised = [
        np.flatnonzero(tokens.supervised[part[: length - shared] + 1])
        for part, length in zip(own, computed, strict=True)
    ]
    rows_R = np.concatenate([s + start for s, start in zip(supervised, starts, strict=False)])

    put = partial(on_device, device=device)
    positions_T = np.concatenate(
        [np.arange(shared), *(np.arange(shared, length) for length in lengths)]
    )
    weights_R = np.repeat(factors[chosen], [len(s) for s in supervised])
    return MicroBatch(
        examples=list(examples),
        ids_1T=put(tokens.ids[source_T])[None],
        positions_1T=put(positions_T)[None],
        labels_R=put(tokens.ids[source_T[rows_R] + 1]),
        weights_R=put(weights_R, np.float32),
        packed=_boundaries(shared, own_lengths, lengths.tolist(), supervised, put(rows_R)),
        starts=starts[:-1].tolist(),
        num_shared=shared,
    )


def _boundaries(
    shared: int,
    seqlens_own: list[int],
    seqlens_k: list[int],
    supervised: list[np.ndarray],
    rows_R: Tensor,
) -> PackedRows:
    """Returns the boundaries of a packed row.

    `seqlens_own`, `seqlens_k`: tokens of each example without and with the shared prefix.
    `supervised`: supervised rows within each example's own tokens.
    """
    # The prefix attends to itself, as a sequence of its own; each example attends to it and itself.
    prefix = [shared] if shared else []
    whole = _varlen(shared, prefix + seqlens_own, prefix + seqlens_k, rows_R.device)
    # The last layer's queries: each example from its first supervised row to its end.
    seqlens_last = [num - int(s[0]) for num, s in zip(seqlens_own, supervised, strict=True)]
    last = _varlen(shared, seqlens_last, seqlens_k, rows_R.device)
    if len(rows_R) == sum(seqlens_last):
        return PackedRows(rows_R, whole, last, row_positions_R=None)
    starts = _cumulative(seqlens_last)
    row_positions_R = np.concatenate(
        [s - s[0] + start for s, start in zip(supervised, starts, strict=False)]
    )
    return PackedRows(rows_R, whole, last, on_device(row_positions_R, device=rows_R.device))


def _varlen(
    shared: int, seqlens_q: list[int], seqlens_k: list[int], device: torch.device
) -> VarlenMetadata:
    cu_seqlens_q = on_device(_cumulative(seqlens_q), np.int32, device=device)
    cu_seqlens_k = on_device(_cumulative(seqlens_k), np.int32, device=device)
    if not shared:
        return VarlenMetadata(seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k)
    order = on_device(_key_order(shared, seqlens_k), device=device)
    return VarlenMetadata(
        seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k, order, shared, len(seqlens_k)
    )


def _cumulative(lengths: Sequence[int]) -> np.ndarray:
    """Returns the cumulative sum of the lengths with a leading 0: the starts, then the end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _key_order(shared: int, seqlens_k: Sequence[int]) -> np.ndarray:
    """Returns the index of each sequence's keys: its copy of the prefix, then its own keys.

    The source is all copies of the prefix followed by the keys of all examples.
    """
    num_copies = len(seqlens_k)
    copies = shared * np.arange(num_copies + 1)
    own = shared * num_copies + _cumulative([length - shared for length in seqlens_k])
    return np.concatenate(
        [np.r_[copies[i] : copies[i + 1], own[i] : own[i + 1]] for i in range(num_copies)]
    )
