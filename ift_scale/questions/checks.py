"""Turns a source's row into a Question, with one clear error for any problem with it.

Values are never converted: a number, NaN, null or a list in place of a text is refused.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from ift_scale.errors import DataError, Place
from ift_scale.io.json_text import lone_surrogate
from ift_scale.io.jsonl import Row
from ift_scale.questions import answers
from ift_scale.records import LETTERS, Collection, Question, Split


class QuestionContext(TypedDict):
    """The fields of a question that do not come from its row."""

    id: str
    domain: str
    subject: str
    collection: Collection
    split: Split


def choice_question(place: Place, row: Row, **about: Unpack[QuestionContext]) -> Question:
    """Returns a Question from `row`'s question, choices, answer (index or letter), explanation."""
    question, choices = text(place, row, "question"), options(place, row, "choices")
    answer = answers.option_index(_at(place, "answer"), required(place, row, "answer"), choices)
    explanation = optional_text(place, row, "explanation")
    return Question(
        **about, question=question, choices=choices, answer=answer, explanation=explanation
    )


def free_question(place: Place, row: Row, **about: Unpack[QuestionContext]) -> Question:
    """Returns a free Question from `row`'s question, aliases (all right) and explanation."""
    question, aliases = text(place, row, "question"), _aliases(place, row)
    return Question(
        **about,
        kind="free",
        question=question,
        aliases=aliases,
        explanation=optional_text(place, row, "explanation"),
    )


def required(place: Place, row: Row, field: str) -> Any:
    """Returns a column's value; a nested column is written with a dot.

    Raises DataError if it is missing.
    """
    value: Any = row
    for part in field.split("."):
        columns_of = value if isinstance(value, dict) else row
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            columns = ", ".join(sorted(map(str, columns_of)))
            raise DataError(
                _at(place, field), "missing", f"Add it, or remove the row. The row has: {columns}"
            )
    return value


def text(place: Place, row: Row, field: str) -> str:
    """Returns a column's text; DataError if it is missing, empty or of another type."""
    return _as_text(place, field, required(place, row, field))


def optional_text(place: Place, row: Row, field: str) -> str | None:
    """As `text`, but returns None if the column is missing, null or empty."""
    value = row.get(field)
    return (
        None
        if value is None or value == ""
        else _as_text(place, field, value, "must be a text or be omitted")
    )


def options(place: Place, row: Row, field: str) -> list[str]:
    """Returns the options of a column that contains a list of 2 to 26 texts."""
    value = required(place, row, field)
    if not isinstance(value, list | tuple):
        raise DataError(
            _at(place, field), "must be a list of 2 to 26 options", "Fix or remove the row", value
        )
    return checked_options(place, field, value)


def columns_of_options(place: Place, row: Row, columns: Sequence[str]) -> list[str]:
    """Returns the options of a row with one column per option; none may be empty."""
    values = [_as_text(place, column, required(place, row, column)) for column in columns]
    return checked_options(place, ", ".join(columns), values)


def checked_options(place: Place, field: str, value: Sequence[Any]) -> list[str]:
    """Returns `value` as options; DataError unless it is 2 to 26 non-empty texts."""
    if not 2 <= len(value) <= len(LETTERS):
        raise DataError(
            _at(place, field),
            "must be a list of 2 to 26 options",
            "Fix or remove the row",
            list(value),
        )
    for letter, item in zip(LETTERS, value, strict=False):
        _as_text(place, field, item, f"an option is empty or not a text (option {letter})")
    return list(value)


def row_id(place: Place, row: Row) -> str | None:
    """Returns the field `id`, an integer or a text, or None if the row has none."""
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _as_text(place, "id", value, "must be an integer or a text")


def without_answer(place: Place, field: str, value: object, remedy: str) -> DataError:
    """Returns the error for a row whose answer its authors have not published."""
    return DataError(_at(place, field), "the answers of this split are not public", remedy, value)


def _at(place: Place, field: str) -> Place:
    return Place(place.file, place.line, field)


def _as_text(
    place: Place, field: str, value: Any, problem: str = "must be a non-empty string"
) -> str:
    if isinstance(value, str) and value.strip():
        if lone_surrogate(value):
            remedy = "Remove the escape, or write the complete pair"
            raise DataError(
                _at(place, field),
                "contains half of a surrogate pair, which is not a character",
                remedy,
                value,
            )
        return value
    remedy = "Give it a text, or remove the row"
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        remedy = f'If the number is intended, write it as a text: "{value}"'
    raise DataError(_at(place, field), problem, remedy, value)


def _aliases(place: Place, row: Row) -> list[str]:
    value = required(place, row, "aliases")
    if not isinstance(value, list | tuple) or not value:
        raise DataError(
            _at(place, "aliases"),
            "must be a list of one or more right answers",
            "Fix or remove the row",
            value,
        )
    return [
        _as_text(place, "aliases", alias, "an answer is empty or not a text") for alias in value
    ]
