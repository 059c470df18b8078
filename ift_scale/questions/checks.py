"""Turning a source's row into a Question, with one clear error for whatever is wrong with it."""

from typing import Any, TypedDict, Unpack

from ift_scale.errors import DataError, Place
from ift_scale.records import LETTERS, Collection, Question, Split

Row = dict[str, Any]


class About(TypedDict):
    """What a row does not say of itself."""

    id: str
    domain: str
    subject: str
    collection: Collection
    split: Split


def choice_question(place: Place, row: Row, **about: Unpack[About]) -> Question:
    """A Question from the fields question, choices, answer (index or letter) and explanation of `row`."""
    text = _text(place, row, "question")
    choices = _choices(place, row)
    answer = _answer(place, row, choices)
    return Question(**about, question=text, choices=choices, answer=answer, explanation=_explanation(place, row))


def free_question(place: Place, row: Row, **about: Unpack[About]) -> Question:
    """A free Question from the fields question, aliases (any of them is right) and explanation of `row`."""
    text, aliases = _text(place, row, "question"), _aliases(place, row)
    return Question(**about, kind="free", question=text, aliases=aliases, explanation=_explanation(place, row))


def required(place: Place, row: Row, field: str) -> Any:
    """The value of a column; a column inside a column is written with a dot. DataError where there is none."""
    value: Any = row
    for part in field.split("."):
        known = value if isinstance(value, dict) else row
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise DataError(_at(place, field), "missing", f"Add it, or remove the row. The row has: {', '.join(sorted(known))}")
    return value


def without_answer(place: Place, field: str, value: object, remedy: str) -> DataError:
    """The error for a row whose right answer its authors keep to themselves."""
    return DataError(_at(place, field), "the answers of this split are not public", remedy, value)


def _at(place: Place, field: str) -> Place:
    return Place(place.file, place.line, field)


def _text(place: Place, row: Row, field: str) -> str:
    value = required(place, row, field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(_at(place, field), "must be a text that is not empty", "Give it a text, or remove the row", value)
    return value


def _explanation(place: Place, row: Row) -> str | None:
    value = row.get("explanation") or None
    if value is not None and not isinstance(value, str):
        raise DataError(_at(place, "explanation"), "must be a text, or be left out", "Mend or remove it", value)
    return value


def _choices(place: Place, row: Row) -> list[str]:
    value = required(place, row, "choices")
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(_at(place, "choices"), "must be a list of 2 to 26 options", "Mend or remove the row", value)
    for option in value:
        if not isinstance(option, str) or not option.strip():
            raise DataError(_at(place, "choices"), "an option is empty or not a text", "Mend or remove the row", value)
    return list(value)


def _aliases(place: Place, row: Row) -> list[str]:
    value = required(place, row, "aliases")
    if not isinstance(value, list | tuple) or not value:
        raise DataError(_at(place, "aliases"), "must be a list of one or more right answers", "Mend or remove the row", value)
    for alias in value:
        if not isinstance(alias, str) or not alias.strip():
            raise DataError(_at(place, "aliases"), "an answer is empty or not a text", "Mend or remove the row", value)
    return list(value)


def _answer(place: Place, row: Row, choices: list[str]) -> int:
    value = required(place, row, "answer")
    valid = LETTERS[: len(choices)]
    if isinstance(value, str) and len(value) == 1 and value.upper() in valid:
        return valid.index(value.upper())
    if isinstance(value, str) and value.isdecimal():  # a CSV file has only texts
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        remedy = f"Use an index from 0 to {len(choices) - 1} or a letter from A to {valid[-1]}"
        raise DataError(_at(place, "answer"), "is neither an option's index nor its letter", remedy, value)
    if not 0 <= value < len(choices):
        remedy = f"With {len(choices)} options the index goes from 0 to {len(choices) - 1}; mend or remove the row"
        raise DataError(_at(place, "answer"), "is out of range", remedy, value)
    return value
