"""Users' own sets: read, mixed and written once, in the same form as the sets built from pools."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ift_scale.config.construct import ConstructConfig
from ift_scale.config.instructions import InstructionSet
from ift_scale.errors import DataError, Place
from ift_scale.instructions.mixing import mixed
from ift_scale.instructions.read import Skipped, read
from ift_scale.io.dataset import files_digest
from ift_scale.io.files import link_or_copy, write_jsonl
from ift_scale.io.progress import say
from ift_scale.records import Arm, Example, ExampleMeta


def is_own(arm: Arm, config: ConstructConfig) -> bool:
    """True if the arm's set is a user's own."""
    return any(own.name == arm.setting for own in config.sets)


def check(config: ConstructConfig) -> None:
    """Raises DataError for a source that does not exist or begins with a row of no known format."""
    for own in config.sets:
        for source in own.all_sources:
            next(read(source, Skipped()))


def input_digests(config: ConstructConfig) -> dict[str, str]:
    """Returns the digest of each local source; datasets of the hub count by name."""
    digests = {}
    for own in config.sets:
        for number, source in enumerate(own.all_sources):
            digest = files_digest(source.path)
            if digest is not None:
                digests[f"{own.name}/source{number}"] = digest
    return digests


def num_examples(config: ConstructConfig, name: str) -> int:
    """Returns the number of examples of the set `name`, by reading its sources."""
    sources = next(own.all_sources for own in config.sets if own.name == name)
    return sum(1 for _ in mixed(sources, [Skipped() for _ in sources]))


def write(own: InstructionSet, arms: Sequence[Arm], folder: Path) -> int:
    """Writes the set to FOLDER/ARM.jsonl for every arm, which are links to one file.

    Returns the number of examples. Memory does not grow with their lengths. Raises DataError if no
    example is left.
    """
    reports = [Skipped() for _ in own.all_sources]
    first, *others = [folder / f"{arm.name}.jsonl" for arm in arms]
    size = write_jsonl(first, _examples(own, reports, arms[0].domain))
    for source, report in zip(own.all_sources, reports, strict=True):
        used = "" if source.weight == 1 else f"; weight {source.weight:g}"
        say(f"construct: {own.name}: {report.summary(source.path)}{used}")
    if not size:
        raise DataError(
            Place(f"construct.sets: {own.name}"),
            "no example was drawn",
            "Raise the weights of its sources",
            [source.weight for source in own.all_sources],
        )
    for other in others:
        link_or_copy(first, other)
    return size


def _examples(own: InstructionSet, reports: Sequence[Skipped], domain: str) -> Iterator[Example]:
    for found in mixed(own.all_sources, reports):
        meta = ExampleMeta(
            setting=own.name,
            question_id=found.id,
            domain=domain,
            wording="dataset",
            weight=found.weight,
            source=str(found.place),
        )
        yield Example(messages=found.messages, meta=meta)
