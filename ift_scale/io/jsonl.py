"""Reading users' JSON files row by row, each row with its line number: one object per line, or one list of objects.

Plain or gzipped, with or without a byte order mark.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.io import text_file

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_REMEDY = "Fix or remove it. A file holds one object per line, or is one list of objects"

Row = dict[str, Any]


class _RepeatedKey(ValueError):
    """A key that an object has twice."""


def exists(folder: Path, stem: str) -> bool:
    """Whether `find` finds one."""
    return any((folder / f"{stem}{suffix}").is_file() for suffix in _SUFFIXES)


def find(folder: Path, stem: str) -> Path:
    """`folder/stem.jsonl`, `.json` or either with `.gz`; DataError names what was looked for."""
    names = [f"{stem}{suffix}" for suffix in _SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        Place(folder),
        f"no file {' or '.join(names)}",
        "Set the source's path to the folder that holds it",
    )


def rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, row) of each object.

    Raises DataError for anything that is not a JSON object, a key that an object has twice, and half
    of a surrogate pair. A file of lines is streamed; a list is read whole.
    """
    lines = enumerate(_lines(path), start=1)
    for number, line in lines:
        text = line.lstrip()
        if text.startswith("["):
            yield from _listed(path, line + "".join(rest for _, rest in lines), number)
        elif text:
            yield number, _row(path, number, line)


def count(path: Path) -> int:
    """Number of rows; of a file of lines, they are not parsed."""
    found = 0
    for line in _lines(path):
        text = line.lstrip()
        if not found and text.startswith("["):
            return sum(1 for _ in rows(path))
        found += bool(text)
    return found


def _lines(path: Path) -> Iterator[str]:
    """The lines without the byte order marks that joining several files leaves; none is inside a text, which has no line ends."""
    return (line.removeprefix("\ufeff") for line in text_file.lines(path))


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _row(path: Path, number: int, line: str) -> Row:
    try:
        return _checked(path, number, _DECODER.decode(line.rstrip()), line)
    except (ValueError, RecursionError) as error:
        raise _unreadable(Place(path, number), error, line.strip()) from error


def _listed(path: Path, text: str, number: int) -> Iterator[tuple[int, Row]]:
    """The objects of a list, each with the line that it begins on; `text` begins on line `number`."""
    first_line, end, mark = number, text.index("[") + 1, ","
    begin = _skip_blanks(text, end)
    if text[begin : begin + 1] == "]":  # an empty list
        mark, end = "]", begin + 1
    while mark == ",":
        number += text.count("\n", end, begin)
        try:
            value, end = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            line = (
                first_line + error.lineno - 1 if isinstance(error, json.JSONDecodeError) else number
            )
            raise _unreadable(Place(path, line), error, text[begin : begin + 80]) from error
        yield number, _checked(path, number, value, text[begin:end])
        after = _skip_blanks(text, end)
        number += text.count("\n", begin, after)
        mark = text[after : after + 1]
        if mark not in (",", "]"):
            raise DataError(
                Place(path, number),
                "not valid JSON: ',' or ']' must follow",
                _REMEDY,
                text[after : after + 80],
            )
        end = after + 1
        begin = _skip_blanks(text, end)
    rest = _skip_blanks(text, end)
    if rest < len(text):
        raise DataError(
            Place(path, number),
            "not valid JSON: more follows the list",
            _REMEDY,
            text[rest : rest + 80],
        )


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _unreadable(place: Place, error: Exception, shown: str) -> DataError:
    if isinstance(error, _RepeatedKey):
        place = Place(place.file, place.line, str(error))
        return DataError(place, "is in the object twice", "Remove one of the two", shown)
    problem = "too deeply nested" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        problem = f"{error.msg} (column {error.colno})"
    return DataError(place, f"not valid JSON: {problem}", _REMEDY, shown)


def _checked(path: Path, number: int, row: Any, source: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            Place(path, number),
            "not a JSON object",
            'Each row must be an object such as {"question": ...}',
            row,
        )
    # Only an escape can make a lone surrogate, and few lines have one.
    found = _lone_surrogate(row) if "\\u" in source else None
    if found is not None:
        field, text = found
        problem = "holds half of a surrogate pair, which is not a character"
        raise DataError(
            Place(path, number, field),
            problem,
            "Remove the \\ud8.. to \\udf.. escape, or write the pair",
            text,
        )
    return row


def _lone_surrogate(value: Any, field: str = "") -> tuple[str, str] | None:
    """(field, text) of the first text below `value` that cannot be encoded, keys included."""
    if isinstance(value, str):
        return (field, value) if text_file.lone_surrogate(value) else None
    if isinstance(value, dict):
        bad = next((key for key in value if text_file.lone_surrogate(key)), None)
        if bad is not None:
            return ascii(bad), bad
        parts = [(f"{field}.{key}" if field else key, part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{field}[{index}]", part) for index, part in enumerate(value)]
    else:
        return None
    return next(
        (found for name, part in parts if (found := _lone_surrogate(part, name)) is not None), None
    )
