"""Reading users' JSON files row by row, with line numbers.

A file has one object per line, or is one list of objects. It may be gzipped and may start with a
byte order mark.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, OnError, Place, stop_at
from ift_scale.io import text_file

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_REMEDY = "Fix or remove it. A file must have one object per line, or be one list of objects"

Row = dict[str, Any]


class _RepeatedKey(ValueError):
    """A duplicate key of an object."""


def exists(folder: Path, stem: str) -> bool:
    """True if `find` would find a file."""
    return any((folder / f"{stem}{suffix}").is_file() for suffix in _SUFFIXES)


def find(folder: Path, stem: str) -> Path:
    """Returns `folder/stem.jsonl`, `.json` or either with `.gz`; DataError if none exists."""
    names = [f"{stem}{suffix}" for suffix in _SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        Place(folder),
        f"no file {' or '.join(names)}",
        "Set the source's path to the folder that contains it",
    )


def rows(path: Path, on_error: OnError = stop_at) -> Iterator[tuple[int, Row]]:
    """Yields (line number from 1, row) for each object.

    Calls `on_error` with a DataError for anything but a JSON object, for duplicate keys and for
    lone surrogates. A list that is not valid JSON raises it, because nothing after the error can be
    read. A file of lines is streamed; a list is read as a whole.
    """
    lines = enumerate(_lines(path), start=1)
    for number, line in lines:
        text = line.lstrip()
        if text.startswith("["):
            yield from _listed(path, line + "".join(rest for _, rest in lines), number, on_error)
        elif text:
            try:
                row = _row(path, number, line)
            except DataError as error:
                on_error(error)
            else:
                yield number, row


def count(path: Path) -> int:
    """Returns the number of rows. The rows of a file of lines are not parsed."""
    num_rows = 0
    for line in _lines(path):
        text = line.lstrip()
        if not num_rows and text.startswith("["):
            return sum(1 for _ in rows(path))
        num_rows += bool(text)
    return num_rows


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines without the byte order marks that concatenated files have.

    JSON strings have no line breaks, so no text can lose a character of its own.
    """
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


def _listed(path: Path, text: str, number: int, on_error: OnError) -> Iterator[tuple[int, Row]]:
    """Yields the objects of a list with the line each starts on; `text` starts on line `number`."""
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
        try:
            row = _checked(path, number, value, text[begin:end])
        except DataError as error:
            on_error(error)
        else:
            yield number, row
        after = _skip_blanks(text, end)
        number += text.count("\n", begin, after)
        mark = text[after : after + 1]
        if mark not in (",", "]"):
            raise DataError(
                Place(path, number),
                "not valid JSON: expected ',' or ']'",
                _REMEDY,
                text[after : after + 80],
            )
        end = after + 1
        begin = _skip_blanks(text, end)
    rest = _skip_blanks(text, end)
    if rest < len(text):
        raise DataError(
            Place(path, number),
            "not valid JSON: unexpected text after the list",
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
        return DataError(place, "duplicate key in the object", "Remove one of the two", shown)
    problem = "too deeply nested" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        problem = f"{error.msg} (column {error.colno})"
    return DataError(place, f"not valid JSON: {problem}", _REMEDY, shown)


def _checked(path: Path, number: int, row: Any, source: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            Place(path, number),
            "not a JSON object",
            'Each row must be an object such as {"name": "value"}',
            row,
        )
    # Only an escape can produce a lone surrogate, and few lines have one.
    lone = _lone_surrogate(row) if "\\u" in source else None
    if lone is not None:
        field, text = lone
        problem = "holds half of a surrogate pair, which is not a character"
        raise DataError(
            Place(path, number, field),
            problem,
            "Remove the \\ud8.. to \\udf.. escape, or write the complete pair",
            text,
        )
    return row


def _lone_surrogate(value: Any, field: str = "") -> tuple[str, str] | None:
    """Returns (field, text) of the first text in `value` that cannot be encoded, keys included."""
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
        (lone for name, part in parts if (lone := _lone_surrogate(part, name)) is not None), None
    )
