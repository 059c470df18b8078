"""One rank's micro-batch: examples laid end to end without padding, positions restarting at each.

Nothing is computed that the loss does not need, and nothing twice: an example ends with the token before its last supervised one,
and where all examples begin with the same tokens (a template's system prompt, say), these stand once, before them. A causal model
computes the same for them in every example, so what follows reads their keys and values there, and sends its gradients there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.packing import Step

# A shorter prefix saves less than gathering its keys and values for every example costs.
_LEAST_SHARED = 8


@dataclass(frozen=True)
class Places:
    """Which keys each run of queries attends to, causally, the last query seeing all of its keys.

    `*_starts`: the runs' first places, and the end, as int32 on the device, as variable-length kernels want them. Where
    `num_shared` tokens of all examples stand first, `keys` says where the runs' keys, one after another, lie when these are
    repeated `times` times and the examples' own tokens follow; each of those is read once.
    """

    query_lengths: list[int]
    key_lengths: list[int]
    query_starts: Tensor
    key_starts: Tensor
    keys: Tensor | None = None
    num_shared: int = 0
    times: int = 0


@dataclass(frozen=True)
class Packed:
    """Where the examples of a packed row of T tokens lie, and its R wanted rows: what attention and the last layer need.

    `whole`: of a layer that computes every row. `last`: of one that computes the wanted rows only; its queries are each example's
    rows from its first wanted one to its end. `row_places_R`: where the wanted rows lie among these; None where they are all of
    them (always so in a single turn).
    """

    rows_R: Tensor
    whole: Places
    last: Places
    row_places_R: Tensor | None


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of which R predict a supervised token; `packed.rows_R` are the places whose next token is supervised.

    `weights_R`: the factor of each row's cross-entropy in the loss of the whole optimizer step, float32. `starts`: where each
    example's own tokens begin, behind `num_shared` tokens of all.
    """

    examples: list[int]
    ids_1T: Tensor
    positions_1T: Tensor
    labels_R: Tensor
    weights_R: Tensor
    packed: Packed
    starts: list[int]
    num_shared: int


def num_shared(examples: Sequence[int], tokens: TokenizedSet) -> int:
    """Tokens with which all the examples begin and none of which predicts a supervised one; 0 where they are not worth sharing."""
    if len(examples) < 2:
        return 0
    most = int(tokens.first_rows[list(examples)].min())
    rows = [tokens.ids[tokens.offsets[i] : tokens.offsets[i] + most] for i in examples]
    differ = (np.stack(rows[1:]) != rows[0]).any(axis=0)
    found = int(differ.argmax()) if differ.any() else most
    return found if found >= _LEAST_SHARED else 0


def shared_prefixes(step: Step, tokens: TokenizedSet) -> list[tuple[int, int]]:
    """(tokens, examples) of what each micro-batch of each rank computes once."""
    return [(num_shared(place, tokens), len(place)) for micro in step for place in micro if place]


def num_saved(prefixes: Sequence[tuple[int, int]]) -> int:
    """Tokens that are not computed since they stand once."""
    return sum(length * (examples - 1) for length, examples in prefixes)


def collate(
    examples: Sequence[int],
    tokens: TokenizedSet,
    scales: np.ndarray,
    device: torch.device,
    share: bool = True,
) -> MicroBatch:
    """The examples as one packed row; `scales[i]` is the factor of example i's tokens in the loss, shape (all examples,).

    A rank without an example computes one of weight 0, so that it takes part in every collective. `share`: a common prefix once.
    """
    chosen, factors = list(examples), scales
    if not chosen:
        chosen, factors = [int(tokens.lengths.argmin())], np.zeros_like(scales)
    shared = num_shared(chosen, tokens) if share else 0
    firsts, lengths = tokens.offsets[chosen], tokens.computed_lengths[chosen]
    own = [
        np.arange(first + shared, first + length)
        for first, length in zip(firsts, lengths, strict=True)
    ]
    wanted = [np.flatnonzero(tokens.supervised[part + 1]) for part in own]
    source = np.concatenate([np.arange(firsts[0], firsts[0] + shared), *own])
    starts = shared + _starts([len(part) for part in own])
    last_lengths = [len(part) - int(w[0]) for part, w in zip(own, wanted, strict=True)]
    rows_R = np.concatenate([w + start for w, start in zip(wanted, starts, strict=False)])
    places_R = np.concatenate(
        [w - w[0] + start for w, start in zip(wanted, _starts(last_lengths), strict=False)]
    )

    def put(array: np.ndarray, dtype: type = np.int64) -> Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
        return whole.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else whole

    def places(queries: list[int], keys: list[int]) -> Places:
        runs = queries, keys, put(_starts(queries), np.int32), put(_starts(keys), np.int32)
        return (
            Places(*runs, put(_interleaved(shared, keys)), shared, len(keys))
            if shared
            else Places(*runs)
        )

    prefix = [shared] if shared else []
    own_lengths, key_lengths = [len(part) for part in own], lengths.tolist()
    packed = Packed(
        rows_R=put(rows_R),
        whole=places(prefix + own_lengths, prefix + key_lengths),
        last=places(last_lengths, key_lengths),
        row_places_R=None if len(rows_R) == sum(last_lengths) else put(places_R),
    )
    return MicroBatch(
        examples=list(examples),
        ids_1T=put(tokens.ids[source])[None],
        positions_1T=put(
            np.concatenate([np.arange(shared), *(np.arange(shared, length) for length in lengths)])
        )[None],
        labels_R=put(tokens.ids[source[rows_R] + 1]),
        weights_R=put(np.repeat(factors[chosen], [len(w) for w in wanted]), np.float32),
        packed=packed,
        starts=starts[:-1].tolist(),
        num_shared=shared,
    )


def _starts(lengths: Sequence[int]) -> np.ndarray:
    """Where parts of these lengths begin when laid end to end, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _interleaved(shared: int, key_lengths: Sequence[int]) -> np.ndarray:
    """Where each run's keys lie: its copy of the prefix among the repeated ones, then its own, which stand behind all of these."""
    times = len(key_lengths)
    own = shared * times + _starts([length - shared for length in key_lengths])
    copies = shared * np.arange(times + 1)
    return np.concatenate(
        [np.r_[copies[i] : copies[i + 1], own[i] : own[i + 1]] for i in range(times)]
    )
