"""Draws the rows that a limit keeps, and assigns rows of an unsplit dataset to splits.

Both depend only on the rows' ids and the seed. A row without an id gets one derived from its
content, so nothing depends on the order of a file. Only ranks and row positions are kept (16 bytes
per row), so a pool of any size can be limited while it streams.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from ift_scale import draws
from ift_scale.errors import Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.checks import row_id
from ift_scale.records import Split


def id_of(fields: Row) -> str:
    """Returns a row's own id, or one derived from all its content."""
    own = fields.get("id")
    if own is not None:
        return str(own)
    return draws.content_id({name: value for name, value in fields.items() if value is not None})


def unique_id(place: Place, fields: Row, unique: draws.Unique) -> str:
    """As `id_of`, but distinct for equal rows without an id.

    Rows' own ids are kept; a repeated one is refused later.
    """
    return row_id(place, fields) or unique(id_of(fields))


def lowest(ids: Iterable[str], limit: int, key: str) -> set[int]:
    """Returns the positions of the `limit` ids that `key` draws, or all if there are fewer."""
    return set(_in_order(ids, key)[:limit].tolist())


def assign_to_splits(
    ids: Iterable[str], counts: dict[Split, int], rest: Split, key: str
) -> dict[Split, array]:
    """Assigns row positions to splits at random.

    Each split in `counts` gets that many, in the order of the draw. The others go to `rest` in the
    order of the file.
    """
    order = _in_order(ids, key)
    splits: dict[Split, array] = {}
    start = 0
    for split, count in counts.items():
        splits[split] = array("q", order[start : start + count].tolist())
        start += count
    return splits | {rest: array("q", np.sort(order[start:]).tolist())}


def _in_order(ids: Iterable[str], key: str) -> np.ndarray:
    """Returns the row positions in the random order that `key` and the ids define."""
    ranks = np.frombuffer(array("Q", (draws.rank(key, id) for id in ids)), dtype=np.uint64)
    return np.argsort(ranks, kind="stable")
