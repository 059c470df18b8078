"""Which rows a limit keeps, and which split a row of an unsplit dataset goes to: by the rows' ids and the seed alone.

A row without an id of its own gets one made of its content, so nothing depends on the order of a file. Only ranks and
row positions are kept (16 bytes per row), so a pool of any size can be limited while it streams.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from ift_scale import draws
from ift_scale.errors import Place
from ift_scale.questions.checks import Row, row_id
from ift_scale.records import Split


def id_of(fields: Row) -> str:
    """A row's own id, or else one made of everything that it holds."""
    own = fields.get("id")
    if own is not None:
        return str(own)
    return draws.content_id({name: value for name, value in fields.items() if value is not None})


def unique_id(place: Place, fields: Row, unique: draws.Unique) -> str:
    """The same, with equal rows without an id told apart. An id that rows have of their own stays, and is refused when repeated."""
    return row_id(place, fields) or unique(id_of(fields))


def lowest(ids: Iterable[str], limit: int, key: str) -> set[int]:
    """Positions of the `limit` ids that `key` draws (all if there are no more)."""
    return set(_in_order(ids, key)[:limit].tolist())


def dealt(
    ids: Iterable[str], counts: dict[Split, int], rest: Split, key: str
) -> dict[Split, array]:
    """Deals row positions to splits, `counts` to each that it names, in the order of the draw, and what remains to `rest`, in the
    order of the file."""
    order = _in_order(ids, key)
    splits: dict[Split, array] = {}
    start = 0
    for split, count in counts.items():
        splits[split] = array("q", order[start : start + count].tolist())
        start += count
    return splits | {rest: array("q", np.sort(order[start:]).tolist())}


def _in_order(ids: Iterable[str], key: str) -> np.ndarray:
    ranks = np.frombuffer(array("Q", (draws.rank(key, id) for id in ids)), dtype=np.uint64)
    return np.argsort(ranks, kind="stable")
