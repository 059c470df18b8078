"""Few-shot demonstrations drawn from the data itself, never an example's own or a copy of it.

Every prompt belongs to one of two halves by the hash of its words. An example is shown answered
examples of the other half, so all examples of a kind and half share their prefix, and neither the
example nor a copy of its prompt is ever among them.
"""

import heapq
from collections.abc import Iterable

from ift_scale import draws
from ift_scale.questions.similarity import Normal
from ift_scale.records import Question

HALVES = (0, 1)
Group = tuple[str, int]
"""An example's kind and half."""


def prompt_digest(question: Question) -> str:
    """Returns a digest that is equal for prompts with equal words and equal sets of options."""
    return Normal.of(question.question, question.choices).digest().hex()


def half_of(digest: str) -> int:
    """Returns the half of a prompt with this digest."""
    return draws.rank("half", digest) % len(HALVES)


class Reservoir:
    """Keeps, for each kind and half, the examples with the lowest hashes among all added.

    Copies of a prompt count once, the first of them. Apart from that, the result does not depend on
    the order of the examples. Memory: `size` examples per group.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._key = size, f"screen/{seed}"
        self._kept: dict[Group, list[tuple[int, str, Question]]] = {}

    def add(self, kind: str, question: Question, digest: str) -> None:
        kept = self._kept.setdefault((kind, half_of(digest)), [])
        item = (-draws.rank(self._key, digest), digest, question)
        if any(digest == other for _, other, _ in kept):
            return  # a copy of a prompt that is kept already
        if len(kept) < self._size:
            heapq.heappush(kept, item)
        elif item > kept[0]:
            heapq.heapreplace(kept, item)

    def shown_to(self, group: Group) -> list[Question]:
        """Returns the demonstrations for a kind and half, from the other half, in random order."""
        kind, half = group
        kept = self._kept.get((kind, 1 - half), [])
        return [question for *_, question in sorted(kept, key=lambda item: (-item[0], item[1]))]


class GroupDemonstrations:
    """The demonstrations of one kind and half: draw d shows the d-th `num_shots` of them.

    With too few examples the draws overlap, and with fewer than `num_shots` all are shown.
    """

    def __init__(self, shown: Iterable[Question], num_shots: int):
        self._shown, self._num_shots = list(shown), num_shots

    def of(self, question: Question, draw: int = 0) -> list[Question]:
        count = min(self._num_shots, len(self._shown))
        first = draw * count
        return [self._shown[(first + i) % len(self._shown)] for i in range(count)]
