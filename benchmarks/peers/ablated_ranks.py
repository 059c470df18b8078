"""ift_scale's training ranks without one optimization, which an environment variable names.

The difference in seconds shows the effect of the optimization. Started by ours_train.py in place of
`ift_scale.train.worker`. The steps' examples and their loss are unchanged.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ift_scale.train.data.dataset import TokenizedSet

VARIABLE = "IFT_SCALE_BENCHMARK_WITHOUT"
Collate = Callable[..., Any]


def with_padding(collate: Collate) -> Collate:
    """Pads every example to the longest of its micro-batch; padding is computed like tokens."""

    def padded(
        examples: Sequence[int], tokens: TokenizedSet, scales: np.ndarray, *rest: Any
    ) -> Any:
        if not examples:
            return collate(examples, tokens, scales, *rest)
        longest = int(tokens.computed_lengths[list(examples)].max())
        ids = np.zeros((len(examples), longest + 1), dtype=tokens.ids.dtype)
        supervised = np.zeros_like(ids, dtype=bool)
        for row, example in enumerate(examples):
            span = slice(tokens.offsets[example], tokens.offsets[example + 1])
            ids[row, : span.stop - span.start] = tokens.ids[span]
            supervised[row, : span.stop - span.start] = tokens.supervised[span]
        offsets = np.arange(len(examples) + 1) * (longest + 1)
        rows = replace(tokens, ids=ids.ravel(), supervised=supervised.ravel(), offsets=offsets)
        rows.__dict__["computed_lengths"] = np.full(
            len(examples), longest
        )  # otherwise the padding would be removed again
        found = collate(range(len(examples)), rows, scales[list(examples)], *rest)
        return replace(found, examples=list(examples))

    return padded


def in_order(assign: Callable[..., Any]) -> Callable[..., Any]:
    """Assigns examples to ranks and micro-batches in order, equally many each."""

    def plain(
        examples: Sequence[int], lengths: np.ndarray, world_size: int, token_cap: int, *rest: Any
    ) -> Any:
        num_places = world_size * len(assign(examples, lengths, world_size, token_cap, *rest))
        while True:
            places = [part.tolist() for part in np.array_split(np.asarray(examples), num_places)]
            if all(lengths[place].sum() <= token_cap for place in places):
                return [
                    places[start : start + world_size] for start in range(0, num_places, world_size)
                ]
            num_places += world_size

    return plain


def on_all_rows(collate: Collate) -> Collate:
    """Computes head and loss on every row, with weight 0 for rows of the prompts.

    The last layer is then computed on all rows, too, and no prefix is shared, because every
    example's own rows are required.
    """

    def whole(examples: Sequence[int], tokens: TokenizedSet, scales: np.ndarray, *rest: Any) -> Any:
        found = collate(
            examples, replace(tokens, supervised=np.ones_like(tokens.supervised)), scales, *rest
        )
        if not examples:
            return found
        parts = [tokens.supervised[tokens.offsets[i] + 1 : tokens.offsets[i + 1]] for i in examples]
        mask_R = torch.from_numpy(np.concatenate(parts)).to(found.weights_R.device)
        return replace(found, weights_R=found.weights_R * mask_R)

    return whole


def take_away(measure: str) -> None:
    from ift_scale.train.data import packing
    from ift_scale.train.data.collate import collate
    from ift_scale.train.engine import deepspeed

    if measure == "padding-removal":
        patch.object(deepspeed, "collate", with_padding(collate)).start()
    elif measure == "balance":
        patch.object(packing, "assign_to_ranks", in_order(packing.assign_to_ranks)).start()
    else:
        assert measure == "supervised-rows", measure
        patch.object(deepspeed, "collate", on_all_rows(collate)).start()


if __name__ == "__main__":
    from ift_scale.train.worker import main

    take_away(os.environ[VARIABLE])
    main()
