"""Finds the option that a source's answer names: by letter, by number, or by the option's text.

A letter names an option by its position, whatever order a dataset lists its classes in. Numbers
count from 0 or 1 as the source does. An ambiguous value is refused.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from ift_scale.config.questions import AnswerForm
from ift_scale.errors import DataError, Place
from ift_scale.records import LETTERS

# "position" is the form of the published datasets: a letter or an index from 0, never a text.
Form = AnswerForm | Literal["position"]

_MARKED = re.compile(r"\(([A-Za-z]|\d{1,3})\)|([A-Za-z]|\d{1,3})[).:、]?")
_FIRST = {"index_from_1": 1}
_OTHER_FORM = "Fix or remove the row; kind huggingface reads other forms by fields.answer_form"
_FORMS = "fields.answer_form (letter, index_from_0, index_from_1 or text)"


def option_index(place: Place, value: Any, choices: Sequence[str], form: Form = "position") -> int:
    """Returns the position in `choices` that `value` names.

    `letter`: "A", "a", "(A)", "A." or "A)". `index_from_0` and `index_from_1`: an integer, or its
    digits as text. `text`: equal to one option except for white space. `position`: a letter or an
    index from 0. `auto`: any of letter, index from 0 and text, if all that apply agree.
    Raises DataError at `place` for a value that names no option or is ambiguous.
    """
    readings = _readings(place, value, choices, form)
    positions = set(readings.values())
    if len(positions) == 1:
        return positions.pop()
    if not positions:
        raise _unusable(place, value, len(choices), form)
    meant = " or ".join(f"{LETTERS[index]} ({reading})" for reading, index in readings.items())
    raise DataError(place, f"may mean option {meant}", f"Set {_FORMS}", value)


def _readings(place: Place, value: Any, choices: Sequence[str], form: Form) -> dict[str, int]:
    """Returns the position according to each form in which `value` can be read."""
    symbol = _symbol(value)
    readings: dict[str, int] = {}
    if form in ("letter", "position", "auto") and isinstance(symbol, str):
        readings["letter"] = LETTERS.index(symbol)
    if form not in ("letter", "text") and isinstance(symbol, int):
        readings[f"index from {_FIRST.get(form, 0)}"] = symbol - _FIRST.get(form, 0)
    readings = {reading: index for reading, index in readings.items() if 0 <= index < len(choices)}
    if form in ("text", "auto") and isinstance(value, str):
        readings |= _by_text(place, value, choices)
    return readings


def _symbol(value: Any) -> str | int | None:
    """Returns a capital letter or a number, None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    match = _MARKED.fullmatch(unicodedata.normalize("NFKC", value).strip())
    if match is None:
        return None
    text = match[1] or match[2]
    return text.upper() if text.isalpha() else int(text)


def _by_text(place: Place, value: str, choices: Sequence[str]) -> dict[str, int]:
    """Returns the position of the option with this text, if there is one."""
    words = value.split()
    equal = (
        [index for index, choice in enumerate(choices) if choice.split() == words] if words else []
    )
    if len(equal) > 1:
        letters = " and ".join(LETTERS[index] for index in equal)
        raise DataError(
            place,
            f"equals options {letters}",
            "Remove the row, or name the option by its letter",
            value,
        )
    return {"its text": equal[0]} if equal else {}


def _unusable(place: Place, value: Any, count: int, form: Form) -> DataError:
    """Returns the error for a value that names no option, with a remedy that fits the value."""
    symbol, first = _symbol(value), _FIRST.get(form, 0)
    if isinstance(symbol, int) and form not in ("letter", "text"):
        remedy = f"With {count} options the index goes from {first} to {count - 1 + first};"
        remedy += " fix or remove the row"
        if symbol == -1:
            remedy += " (-1 often marks a row whose answer is not public)"
        elif symbol in (0, count):
            other = 1 - first
            remedy += f". If the source counts from {other}: kind huggingface with"
            remedy += f" fields.answer_form: index_from_{other}"
        return DataError(place, "is out of range", remedy, value)
    last = LETTERS[count - 1]
    forms = {"letter": f"a letter from A to {last}", "text": "the text of one option"}
    number = f"an index from {first} to {count - 1 + first}"
    if form in forms:
        return DataError(place, f"is not {forms[form]}", _OTHER_FORM, value)
    if form.startswith("index"):
        return DataError(place, f"is not {number}", _OTHER_FORM, value)
    problem = "is neither an option's index nor its letter" + (
        " nor its text" if form == "auto" else ""
    )
    return DataError(place, problem, f"Use {number} or a letter from A to {last}", value)
