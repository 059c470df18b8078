"""Reordered options: each target moves to a letter of its own, so that all sets of one size have the same letters. Pure functions.

Questions may differ in their number of options, and one set may have more long questions than another. Letters are therefore dealt
over a profile that every set can serve: the sets' numbers of options in ascending order, and of each rank the smallest. A question
with more options than its rank in the profile has uses the first letters only.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ift_scale import draws


def swapped(num_choices: int, target: int, letter: int) -> list[int]:
    """The order of the options in which option `target` and the one at position `letter` have changed places."""
    order = list(range(num_choices))
    order[target], order[letter] = order[letter], order[target]
    return order


def common_profile(sets: Iterable[Iterable[int]]) -> list[int]:
    """Numbers of options that each of the sets can serve, ascending. In: the numbers of options of each set's questions."""
    return [min(at_rank) for at_rank in zip(*map(sorted, sets), strict=True)]


def even_letters(
    num_choices: Mapping[str, int], profile: Sequence[int], key: str
) -> dict[str, int]:
    """A letter (from 0) for each question's target, by question id.

    For each number of options in `profile`, all letters come equally often (up to one, the first letters then). Sets of the same
    profile have the same counts of letters, whatever their questions. `key` draws; one question more or less moves few others.
    """
    by_length = sorted(num_choices, key=lambda id: (num_choices[id], draws.rank(key, id), id))
    groups: dict[int, list[str]] = {}
    for id, count in zip(by_length, profile, strict=True):
        groups.setdefault(count, []).append(id)
    return {
        id: letter
        for count, ids in groups.items()
        for id, letter in _dealt(ids, count, key).items()
    }


def _dealt(ids: Sequence[str], count: int, key: str) -> dict[str, int]:
    """Each question takes the letter that its hash names while there is room; the others take what is left."""
    room = Counter(number % count for number in range(len(ids)))
    letters, waiting = {}, []
    for id in draws.shuffled(ids, f"{key}/turn"):
        wish = draws.rank(f"{key}/letter", id) % count
        if room[wish]:
            room[wish] -= 1
            letters[id] = wish
        else:
            waiting.append(id)
    return letters | dict(zip(waiting, sorted(room.elements()), strict=True))
