"""Finds repeated ids without storing them: eight bytes of hash per id.

The questions are read a second time only if two hashes are equal.
"""

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np

from ift_scale.errors import DataError, Place


class SeenIds:
    """Hashes of all ids seen, eight bytes each."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, id: str) -> None:
        self._hashes.append(_hash(id))

    def repeated(self) -> set[int]:
        """Returns the hashes that were added more than once; sorts all hashes in place."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        hashes.sort()
        return {int(value) for value in hashes[1:][hashes[1:] == hashes[:-1]]}


def refuse(questions: Iterable[tuple[int, Place, str]], repeated: set[int]) -> None:
    """Raises DataError for the first repeated id in `questions` (source number, place, id).

    Different ids may share a hash; then nothing is raised.
    """
    first: dict[str, tuple[int, Place]] = {}
    for number, place, id in questions:
        if _hash(id) not in repeated:
            continue
        if id not in first:
            first[id] = number, place
            continue
        number_before, before = first[id]
        if number == number_before:
            problem = f"already used at {before}"
            raise DataError(Place(place.file, place.line, "id"), problem, "Make the ids unique", id)
        remedy = f"questions.sources.{number_before} and .{number} have the same domain; remove one"
        remedy += " or rename it"
        raise DataError(
            Place("questions.sources", field="domain"), "two sources give the same id", remedy, id
        )


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")
