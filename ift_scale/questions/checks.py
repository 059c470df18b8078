"""Turning a source's row into a Question, with one clear error for whatever is wrong with it."""

from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.records import LETTERS, Collection, Question, Split


def choice_question(
    place: Place,
    row: dict[str, Any],
    *,
    id: str,
    domain: str,
    subject: str,
    collection: Collection,
    split: Split,
) -> Question:
    """A Question from the fields question, choices, answer (index or letter) and explanation of `row`."""
    text = _text(place, row, "question")
    choices = _choices(place, row)
    return Question(
        id=id,
        domain=domain,
        subject=subject,
        collection=collection,
        split=split,
        question=text,
        choices=choices,
        answer=_answer(place, row, choices),
        explanation=_explanation(place, row),
    )


def _at(place: Place, field: str) -> Place:
    return Place(place.file, place.line, field)


def _required(place: Place, row: dict[str, Any], field: str) -> Any:
    if row.get(field) is None:
        raise DataError(_at(place, field), "missing", f"Add it, or remove the row. The row has: {', '.join(sorted(row))}")
    return row[field]


def _text(place: Place, row: dict[str, Any], field: str) -> str:
    value = _required(place, row, field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(_at(place, field), "must be a text that is not empty", "Give it a text, or remove the row", value)
    return value


def _explanation(place: Place, row: dict[str, Any]) -> str | None:
    value = row.get("explanation") or None
    if value is not None and not isinstance(value, str):
        raise DataError(_at(place, "explanation"), "must be a text, or be left out", "Mend or remove it", value)
    return value


def _choices(place: Place, row: dict[str, Any]) -> list[str]:
    value = _required(place, row, "choices")
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(_at(place, "choices"), "must be a list of 2 to 26 options", "Mend or remove the row", value)
    for option in value:
        if not isinstance(option, str) or not option.strip():
            raise DataError(_at(place, "choices"), "an option is empty or not a text", "Mend or remove the row", value)
    return list(value)


def _answer(place: Place, row: dict[str, Any], choices: list[str]) -> int:
    value = _required(place, row, "answer")
    valid = LETTERS[: len(choices)]
    if isinstance(value, str) and len(value) == 1 and value.upper() in valid:
        return valid.index(value.upper())
    if isinstance(value, bool) or not isinstance(value, int):
        remedy = f"Use an index from 0 to {len(choices) - 1} or a letter from A to {valid[-1]}"
        raise DataError(_at(place, "answer"), "is neither an option's index nor its letter", remedy, value)
    if not 0 <= value < len(choices):
        remedy = f"With {len(choices)} options the index goes from 0 to {len(choices) - 1}; mend or remove the row"
        raise DataError(_at(place, "answer"), "is out of range", remedy, value)
    return value


class UniqueIds:
    """Refuses an id that another row of the same split has already."""

    def __init__(self) -> None:
        self._seen: dict[str, Place] = {}

    def check(self, place: Place, id: str) -> None:
        if id in self._seen:
            first = self._seen[id]
            raise DataError(_at(place, "id"), f"stands already at {first.file}:{first.line}", "Make the ids unique", id)
        self._seen[id] = place
