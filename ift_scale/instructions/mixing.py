"""Mixes sources by weight, one example at a time, with draws that depend on the examples only."""

from collections.abc import Iterator, Sequence

from ift_scale import draws
from ift_scale.config.instructions import InstructionSource
from ift_scale.instructions.conversation import Conversation
from ift_scale.instructions.read import Skipped, read


def num_copies(weight: float, id: str) -> int:
    """Returns how often an example is used: `weight` on average over ids.

    Examples of a lower weight are a subset of those of a higher one.
    """
    whole, part = divmod(weight, 1.0)
    return int(whole) + (draws.rank("mixing", id) < part * 2**64)


def mixed(
    sources: Sequence[InstructionSource], reports: Sequence[Skipped]
) -> Iterator[Conversation]:
    """Yields the examples of the sources in order, each as often as its source's weight demands.

    `reports`: one per source, filled as by `read`.
    """
    for source, report in zip(sources, reports, strict=True):
        for example in read(source, report):
            for _ in range(num_copies(source.weight, example.id)):
                yield example
