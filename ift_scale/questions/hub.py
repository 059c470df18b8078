"""Any Hugging Face dataset, by hub name or local path, through a mapping of its columns.

Example of a source in a configuration; a column inside a column is written with a dot:
    {kind: huggingface, path: allenai/openbookqa, domain: science, splits: {dev: validation, train: train, test: test},
     fields: {question: question_stem, choices: choices.text, answer: answerKey, id: id}}
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ift_scale.config import HubFields, HubSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.questions import known
from ift_scale.questions.checks import Row
from ift_scale.questions.known import Placed, Target
from ift_scale.questions.reading import open_dataset
from ift_scale.records import Kind


def load(source: HubSource, seed: int) -> Iterator[Placed]:
    """The questions of the mapped splits; DataError when the dataset, a split or a column is not there."""
    opened = open_dataset(source.path, source.name)
    fields = partial(_mapped, source.fields)
    sections = known.sections_of(opened, fields, dict(source.splits), f"{seed}/{source.domain}")
    kind: Kind = "choice" if source.fields.aliases is None else "free"
    target = Target(source.domain, source.domain, source.collection, kind)
    limits = {"train": source.max_train, "test": source.max_test}
    yield from known.questions(sections, fields, target, limits, seed)


def _mapped(fields: HubFields, place: Place, row: Row) -> Row:
    unread = set() if fields.aliases is None else {"choices", "answer"}
    return {ours: _column(place, row, theirs) for ours, theirs in fields.model_dump(exclude=unread).items()}


def _column(place: Place, row: Row, name: str | None) -> Any:
    if name is None:
        return None
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            columns = value if isinstance(value, dict) else row
            raise DataError(Place(place.file, place.line, name), "no such column", f"Set fields: {did_you_mean(part, columns)}")
        value = value[part]
    return value
