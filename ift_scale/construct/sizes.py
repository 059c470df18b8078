"""Smaller sets (`construct.sizes`) as parts of the whole one. Pure functions."""

from collections import Counter
from collections.abc import Sequence

from ift_scale.records import Example


def smaller(examples: Sequence[Example], size: int | None, total: int) -> list[Example]:
    """Returns the share `size / total` of a set's examples, rounded; all of them for None.

    `examples`: in random order. A smaller set is contained in a larger one. The shares of what is
    taught (agreeing with the model or not, target letter) are nearly those of the whole set: the
    k-th of a group's m examples is at position (k - 1/2) / m of the set, and the first positions
    are taken.
    """
    if size is None:
        return list(examples)
    group_of = [(example.meta.consistent, example.meta.target) for example in examples]
    sizes, seen = Counter(group_of), Counter[tuple[bool | None, str | None]]()
    positions = []
    for number, group in enumerate(group_of):
        positions.append(((seen[group] + 0.5) / sizes[group], number))
        seen[group] += 1
    count = round(size * len(examples) / total)
    kept = sorted(number for _, number in sorted(positions)[:count])
    return [examples[number] for number in kept]
