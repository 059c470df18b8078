"""Random draws by identity, for sets that depend on their items and a key alone.

Each item's rank is a hash of the key and the item's id, and a draw takes the lowest ranks. The draw is a simple
random sample, it does not depend on the order in which the items come, samples of one key are nested, and adding or
removing one item changes the draw by at most one item. Pure functions.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def rank(key: str, id: str) -> int:
    """A number below 2^64, uniform over keys and ids."""
    return int.from_bytes(hashlib.blake2b(f"{key}\0{id}".encode(), digest_size=8).digest(), "big")


def shuffled(items: Iterable[T], key: str, id_of: Callable[[T], str] = str) -> list[T]:
    """All items by their ranks, whatever order they come in. Their ids should be unique."""
    return sorted(items, key=lambda item: (rank(key, id_of(item)), id_of(item)))


def sample(ids: Iterable[str], size: int, key: str) -> list[str]:
    """`size` of the ids in random order: the first ones of `shuffled`. ValueError if there are fewer."""
    found = shuffled(ids, key)
    if size > len(found):
        raise ValueError(f"{size} of {len(found)} ids cannot be drawn")
    return found[:size]


def content_id(content: object) -> str:
    """An id made of what an item holds: 16 hexadecimal digits of a hash of its JSON."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Unique:
    """Makes ids unique: the second item of an id gets `-2` behind it, the third `-3`.

    Items of equal content are equal, so it does not matter which of them gets which number. About 70 bytes of memory per id.
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
