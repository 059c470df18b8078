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
from ift_scale.questions import answers, checks, classes, known
from ift_scale.questions.checks import Row
from ift_scale.questions.known import Placed, Target
from ift_scale.questions.reading import open_dataset
from ift_scale.records import LETTERS, Kind


def load(source: HubSource, seed: int) -> Iterator[Placed]:
    """The questions of the mapped splits; DataError when the dataset, a split or a column is not there."""
    opened = open_dataset(source.path, source.name)
    fields = partial(_mapped, source.fields)
    sections = known.sections_of(opened, fields, dict(source.splits), f"{seed}/{source.domain}")
    kind: Kind = "choice" if source.fields.aliases is None else "free"
    target = Target(source.domain, source.domain, source.collection, kind)
    limits = {"train": source.max_train, "test": source.max_test}
    if kind == "choice" and source.fields.answer_form in ("auto", "index_from_0"):
        for section in sections.values():
            classes.refuse_from_1(source.path, section.table.features, source.fields.answer)
    yield from known.questions(sections, fields, target, limits, seed)


def _mapped(fields: HubFields, place: Place, row: Row) -> Row:
    """The columns as our fields, checked under the names that the source gives them."""
    _column(place, row, fields.question)
    mapped: Row = {
        "id": _column(place, row, fields.id),
        "question": checks.text(place, row, fields.question),
    }
    for ours, theirs in (("subject", fields.subject), ("explanation", fields.explanation)):
        value = _column(place, row, theirs)
        mapped[ours] = (
            None if theirs is None else checks.optional_text(place, {theirs: value}, theirs)
        )
    if fields.aliases is not None:
        return mapped | {"aliases": _column(place, row, fields.aliases)}
    choices = _choices(fields.choices, place, row)
    at = Place(place.file, place.line, fields.answer)
    value = _column(place, row, fields.answer)
    labels = _labels(fields, row, len(choices))
    answer = (
        answers.option(at, value, choices, fields.answer_form)
        if labels is None
        else _labelled(at, value, labels)
    )
    return mapped | {"choices": choices, "answer": answer}


def _labels(fields: HubFields, row: Row, num: int) -> list[str] | None:
    """The names that the source itself gives the options, in the column `label` next to theirs; None if they are A, B, C, ... or
    `answer_form` says how an answer counts. Some of ARC's rows have 1, 2, 3, 4."""
    if (
        isinstance(fields.choices, list)
        or "." not in fields.choices
        or fields.answer_form not in ("auto", "letter")
    ):
        return None
    labels: Any = row
    for part in [*fields.choices.split(".")[:-1], "label"]:
        labels = labels.get(part) if isinstance(labels, dict) else None
    if not isinstance(labels, list) or len(labels) != num:
        return None
    names = [str(label).strip().upper() for label in labels]
    return None if names == list(LETTERS[:num]) else names


def _labelled(place: Place, value: Any, labels: list[str]) -> int:
    found = [index for index, label in enumerate(labels) if label == str(value).strip().upper()]
    if len(found) != 1:
        problem = (
            f"names {'several' if found else 'none'} of the options' labels {', '.join(labels)}"
        )
        raise DataError(place, problem, "Fix or remove the row, or set fields.answer_form", value)
    return found[0]


def _choices(names: str | list[str], place: Place, row: Row) -> list[str]:
    """The options, from a column that holds a list or from a column each.

    Of columns, the last may be empty in a row that has fewer options.
    """
    if isinstance(names, str):
        _column(place, row, names)
        return checks.options(place, row, names)
    values = {name: _column(place, row, name) for name in names}
    used = list(names)
    while len(used) > 2 and values[used[-1]] in (None, ""):
        used.pop()
    return checks.columns_of_options(place, values, used)


def _column(place: Place, row: Row, name: str | None) -> Any:
    if name is None:
        return None
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            columns = value if isinstance(value, dict) else row
            raise DataError(
                Place(place.file, place.line, name),
                "no such column",
                f"Set fields: {did_you_mean(part, columns)}",
            )
        value = value[part]
    return value
