"""The examples on which training paths are compared: several turns, a common prefix, all lengths.

Tokens are random, so that every difference in attention shows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ift_scale.train.data.dataset import TokenizedSet

PREFIX = 9
"""Tokens that all examples begin with: enough to be shared (`collate`)."""
PASSED = PREFIX + 16
"""Every length up to this is shorter than two of the examples."""
CHANGED = 1
"""The example that `changed` changes."""
_PAST = 11


def build(vocabulary: int, limits: Sequence[int], seed: int = 0) -> TokenizedSet:
    """Returns five examples, of which two are longer than every limit.

    `limits`: lengths beyond which the model computes something else, such as a sliding window.
    Token ids are below `vocabulary`. Some examples have tokens after the last supervised one.
    """
    longest = max([PASSED, *limits]) + _PAST
    shortest = PREFIX + 6
    # (length, supervised positions)
    plan = [
        (longest, range(longest - 6, longest)),
        (longest + 5, [*range(PREFIX + 3, PREFIX + 6), *range(longest - 4, longest + 1)]),
        (shortest, range(shortest - 3, shortest)),
        (shortest + 8, [PREFIX + 2, PREFIX + 3, PREFIX + 8]),
        (longest, range(PREFIX + 5, PREFIX + 9)),
    ]
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *(length for length, _ in plan)])
    ids = rng.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    supervised = np.zeros(offsets[-1], dtype=bool)
    prefix = rng.integers(0, vocabulary, PREFIX)
    for start, (_, learnt) in zip(offsets, plan, strict=False):
        ids[start : start + PREFIX] = prefix
        supervised[start + np.array(learnt)] = True
    # Examples that agree beyond the prefix would share more than intended.
    ids[offsets[:-1] + PREFIX] = np.arange(len(plan)) % vocabulary
    return TokenizedSet(ids, supervised, offsets, np.ones(len(plan)), num_truncated=0)


def changed(tokens: TokenizedSet, vocabulary: int) -> TokenizedSet:
    """Returns the same set with every token of the example `CHANGED` replaced."""
    span = slice(tokens.offsets[CHANGED], tokens.offsets[CHANGED + 1])
    ids = tokens.ids.copy()
    ids[span] = (ids[span] + 1) % vocabulary
    return replace(tokens, ids=ids)


def scales(tokens: TokenizedSet) -> np.ndarray:
    """Returns a different factor of each example in the loss."""
    return np.linspace(0.05, 0.15, len(tokens.lengths))
