"""Which rows a limit keeps, and which split a row of an unsplit dataset goes to: by row number and seed alone.

Only row numbers are held, so a pool of any size can be limited while it streams.
"""

import random
from array import array
from collections.abc import Iterable

from ift_scale.records import Split


def chosen(total: int, limit: int | None, key: str) -> set[int] | None:
    """`limit` of the numbers below `total`, drawn by `key`; None where all are kept."""
    if limit is None or limit >= total:
        return None
    return set(random.Random(key).sample(range(total), limit))


def drawn(numbers: Iterable[int], counts: dict[Split, int], rest: Split, key: str) -> dict[Split, array]:
    """Deal row numbers to splits, `counts` to each that it names and what remains to `rest`; in their old order within each."""
    order = array("q", numbers)
    random.Random(key).shuffle(order)
    splits: dict[Split, array] = {}
    start = 0
    for split, count in counts.items():
        splits[split] = array("q", sorted(order[start : start + count]))
        start += count
    return splits | {rest: array("q", sorted(order[start:]))}
