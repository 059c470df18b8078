"""Any Hugging Face dataset, by hub name or local path, with a mapping of its columns.

Example of a source in a configuration; a nested column is written with a dot:
    {kind: huggingface, path: allenai/openbookqa, domain: science,
     splits: {dev: validation, train: train, test: test},
     fields: {question: question_stem, choices: choices.text, answer: answerKey, id: id}}
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ift_scale.config.questions import HubFields, HubSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io.dataset import open_dataset
from ift_scale.io.jsonl import Row
from ift_scale.questions import answers, checks, classes, published
from ift_scale.questions.published import Placed, QuestionOrigin
from ift_scale.records import LETTERS, Kind


def load(source: HubSource, seed: int) -> Iterator[Placed]:
    """Yields the questions of the mapped splits.

    Raises DataError if the dataset, a split or a column does not exist.
    """
    opened = open_dataset(source.path, source.name)
    fields = partial(_mapped, source.fields)
    selections = published.selections_of(
        opened, fields, dict(source.splits), f"{seed}/{source.domain}"
    )
    kind: Kind = "choice" if source.fields.aliases is None else "free"
    target = QuestionOrigin(source.domain, source.domain, source.collection, kind)
    limits = {"train": source.max_train, "test": source.max_test}
    if kind == "choice" and source.fields.answer_form in ("auto", "index_from_0"):
        for selection in selections.values():
            classes.refuse_one_based_classes(
                source.path, selection.table.features, source.fields.answer
            )
    yield from published.questions(selections, fields, target, limits, seed)


def _mapped(fields: HubFields, place: Place, row: Row) -> Row:
    """Returns the row with our field names; errors name the source's columns."""
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
        answers.option_index(at, value, choices, fields.answer_form)
        if labels is None
        else _labelled(at, value, labels)
    )
    return mapped | {"choices": choices, "answer": answer}


def _labels(fields: HubFields, row: Row, num: int) -> list[str] | None:
    """Returns the source's own names of the options, from the column `label` next to theirs.

    None if they are A, B, C, ... or if `answer_form` is a number or a text. Some of ARC's rows have
    1, 2, 3, 4.
    """
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
    """Returns the position of the option whose label `value` is."""
    positions = [index for index, label in enumerate(labels) if label == str(value).strip().upper()]
    if len(positions) != 1:
        problem = (
            f"names {'several' if positions else 'none'} of the options' labels {', '.join(labels)}"
        )
        raise DataError(place, problem, "Fix or remove the row, or set fields.answer_form", value)
    return positions[0]


def _choices(names: str | list[str], place: Place, row: Row) -> list[str]:
    """Returns the options, from a column with a list or from one column per option.

    Of several columns, the last ones may be empty in a row with fewer options.
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
    """Returns a column's value, nested columns written with a dot; DataError if it is missing."""
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
