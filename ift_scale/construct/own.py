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
from ift_scale.treatments import POOLED


def set_of(arm: Arm, config: ConstructConfig) -> InstructionSet | None:
    """Returns the user's own set that the arm is trained on, None for a set built from pools."""
    key = (arm.setting, arm.domain)
    return next((own for own in config.sets if (own.name, own.domain or POOLED) == key), None)


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
                digests[f"{own.label}/source{number}"] = digest
    return digests


def num_examples(own: InstructionSet) -> int:
    """Returns the number of examples of the set, by reading its sources."""
    return sum(1 for _ in mixed(own.all_sources, [Skipped() for _ in own.all_sources]))


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
        say(f"construct: {own.label}: {report.summary(source.path)}{used}")
    if not size:
        raise DataError(
            Place(f"construct.sets: {own.label}"),
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
