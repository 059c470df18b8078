"""Which examples of a set are held out, and which ones two files share.

Examples are identified by the contents of their messages, so the draw depends neither on the seed
nor on the order of the set, and equal examples are on the same side.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ift_scale import draws
from ift_scale.errors import DataError, Place

DRAW = "validation"
"""Key of the draw."""


def example_ids(path: Path) -> Iterator[str]:
    """Yields an id of each example's messages from a constructed set, line by line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            messages = json.loads(line)["messages"]
            yield draws.content_id([message["content"] for message in messages])


def held_out(path: Path, share: float) -> np.ndarray:
    """Returns the numbers (from 0) of the set's examples that are held out, ascending, int64.

    Each distinct example is held out with the probability `share`, by a hash of its messages.
    Raises DataError if that leaves none to hold out or none to train on.
    """
    limit = share * 2**64
    is_held_out = [draws.rank(DRAW, id) < limit for id in example_ids(path)]
    numbers = np.flatnonzero(is_held_out)
    if len(numbers) in (0, len(is_held_out)):
        rest = "none" if len(numbers) == 0 else "all"
        raise DataError(
            Place(path),
            f"train.validation.share = {share} holds out {rest} of the {len(is_held_out)} examples",
            f"{'Raise' if rest == 'none' else 'Lower'} train.validation.share, or set "
            "train.validation.path to a file",
        )
    return numbers
