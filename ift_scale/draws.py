"""Random draws by identity, which depend only on the items' ids and a key.

Each item's rank is a hash of the key and the item's id, and a draw takes the lowest ranks. The draw
is a simple random sample. It does not depend on the order of the items, samples of one key are
nested, and adding or removing one item changes a draw by at most one item. Pure functions.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def rank(key: str, id: str) -> int:
    """Returns an integer below 2^64, uniform over keys and ids."""
    return int.from_bytes(hashlib.blake2b(f"{key}\0{id}".encode(), digest_size=8).digest(), "big")


def shuffled(items: Iterable[T], key: str, id_of: Callable[[T], str] = str) -> list[T]:
    """Returns all items sorted by rank, independent of their order. Ids should be unique."""
    return sorted(items, key=lambda item: (rank(key, id_of(item)), id_of(item)))


def sample(ids: Iterable[str], size: int, key: str) -> list[str]:
    """Returns `size` ids in random order, the first ones of `shuffled`. ValueError if fewer."""
    ranked = shuffled(ids, key)
    if size > len(ranked):
        raise ValueError(f"cannot draw {size} of {len(ranked)} ids")
    return ranked[:size]


def content_id(content: object) -> str:
    """Returns an id made from an item's content: 16 hexadecimal digits of a hash of its JSON."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Unique:
    """Makes ids unique by appending `-2` to the second item with an id, `-3` to the third.

    Items with the same id have equal content, so it does not matter which of them gets which
    number. Uses about 70 bytes of memory per id.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._repeated: Counter[str] = Counter()

    def __call__(self, id: str) -> str:
        number = int(id, 16)
        if number not in self._seen:
            self._seen.add(number)
            return id
        self._repeated[id] += 1
        return f"{id}-{self._repeated[id] + 1}"
