"""General instructions that are blended into every set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from ift_scale import draws
from ift_scale.config.construct import GeneralConfig
from ift_scale.config.instructions import InstructionSource
from ift_scale.config.section import BUILTIN_MODEL
from ift_scale.errors import DataError, Place
from ift_scale.instructions.read import Skipped, read
from ift_scale.records import Example, ExampleMeta


def path_of(config: GeneralConfig) -> Path | None:
    if config.path is None:
        return None
    if config.path == BUILTIN_MODEL:
        return Path(str(resources.files("ift_scale.world") / "general.jsonl"))
    return Path(config.path)


def load(path: Path, report: Skipped | None = None) -> dict[str, Example]:
    """Returns the instructions by content hash, independent of their order in the file.

    `report` is filled with what was read and which columns were not used. Raises DataError as
    `read` does, and for a weight in the loss, which general instructions do not have.
    """
    meta = ExampleMeta(setting="general", wording="general")
    found = {}
    for instruction in read(InstructionSource(path=str(path)), report or Skipped()):
        if instruction.weight != 1:
            remedy = "Remove it, or train on the file as one of construct.sets"
            place = replace(instruction.place, field="weight")
            problem = "is not used for general instructions"
            raise DataError(place, problem, remedy, instruction.weight)
        found[instruction.id] = Example(messages=instruction.messages, meta=meta)
    return found


def shuffled(examples: Mapping[str, Example], domain: str, seed: int) -> list[str]:
    """Returns all ids in random order for a domain and seed."""
    return draws.shuffled(examples, f"general/{domain}/{seed}")


def num_needed(set_size: int, share: float) -> int:
    """Returns the general instructions that make up `share` of a set with `set_size` questions."""
    return round(set_size * share / (1 - share))


def max_set_size(num_instructions: int, share: float) -> int:
    """Returns the questions of the largest set for which the general instructions suffice."""
    size = int((num_instructions + 1) * (1 - share) / share) + 1 if share else 0
    while size and num_needed(size, share) > num_instructions:
        size -= 1
    return size


def draw(shuffled: Sequence[str], set_size: int, share: float, path: Path) -> Sequence[str]:
    """Returns the first ids, so many that they make up `share` of the finished set.

    They are the same for all settings of a domain and seed.
    """
    count = num_needed(set_size, share)
    if count > len(shuffled):
        remedy = "Lower construct.general.share or construct.size, or use a larger file"
        raise DataError(
            Place(path),
            f"{count} general instructions are required, but the file has {len(shuffled)}",
            remedy,
        )
    return shuffled[:count]
