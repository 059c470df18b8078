"""Reordered options: targets are moved so that sets of one size have the same letter counts.

Questions may differ in their number of options, and one set may have more long questions than
another. Letters are therefore assigned over a profile that every set can satisfy: sort each set's
numbers of options, then take the minimum over sets at each rank. A question with more options than
its rank in the profile uses the first letters only. Pure functions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ift_scale import draws


def swapped(num_choices: int, target: int, letter: int) -> list[int]:
    """Returns the order of the options with option `target` and the one at `letter` swapped."""
    order = list(range(num_choices))
    order[target], order[letter] = order[letter], order[target]
    return order


def common_profile(sets: Iterable[Iterable[int]]) -> list[int]:
    """Returns the ascending numbers of options that every set can satisfy.

    Args:
        sets: The numbers of options of each set's questions; all sets have the same size.
    """
    return [min(at_rank) for at_rank in zip(*map(sorted, sets), strict=True)]


def even_letters(
    num_choices: Mapping[str, int], profile: Sequence[int], key: str
) -> dict[str, int]:
    """Returns a letter (from 0) for each question's target, by question id.

    For each number of options in `profile`, all letters occur equally often; a remainder goes to
    the first letters. Sets with the same profile get the same letter counts, whatever their
    questions. `key` seeds the draw; adding or removing one question moves few others.
    """
    by_length = sorted(num_choices, key=lambda id: (num_choices[id], draws.rank(key, id), id))
    groups: dict[int, list[str]] = {}
    for id, count in zip(by_length, profile, strict=True):
        groups.setdefault(count, []).append(id)
    return {
        id: letter
        for count, ids in groups.items()
        for id, letter in _assigned(ids, count, key).items()
    }


def _assigned(ids: Sequence[str], count: int, key: str) -> dict[str, int]:
    """Gives each question the letter that its hash selects, or one that is left over."""
    room = Counter(number % count for number in range(len(ids)))
    letters, waiting = {}, []
    for id in draws.shuffled(ids, f"{key}/turn"):
        preferred = draws.rank(f"{key}/letter", id) % count
        if room[preferred]:
            room[preferred] -= 1
            letters[id] = preferred
        else:
            waiting.append(id)
    return letters | dict(zip(waiting, sorted(room.elements()), strict=True))
