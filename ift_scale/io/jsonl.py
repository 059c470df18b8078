"""Reading users' JSON files row by row, with line numbers.

A file has one object per line, or is one list of objects. It may be gzipped and may start with a
byte order mark.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, OnError, Place, stop_at
from ift_scale.io import json_text, text_file

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_REMEDY = "Fix or remove it. A file must have one object per line, or be one list of objects"

Row = dict[str, Any]


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


def _row(path: Path, number: int, line: str) -> Row:
    try:
        return _checked(path, number, json_text.decode(line.rstrip()), line)
    except json_text.InvalidJson as error:
        raise text_file.refusal(Place(path, number), error, _REMEDY, line.strip()) from error


def _listed(path: Path, text: str, number: int, on_error: OnError) -> Iterator[tuple[int, Row]]:
    """Yields the objects of a list with the line each starts on; `text` starts on line `number`."""
    first_line, end, mark = number, text.index("[") + 1, ","
    begin = json_text.skip_blanks(text, end)
    if text[begin : begin + 1] == "]":  # an empty list
        mark, end = "]", begin + 1
    while mark == ",":
        number += text.count("\n", end, begin)
        try:
            value, end = json_text.decode_at(text, begin)
        except json_text.InvalidJson as error:
            line = number if error.line is None else first_line + error.line - 1
            shown = text[begin : begin + 80]
            raise text_file.refusal(Place(path, line), error, _REMEDY, shown) from error
        try:
            row = _checked(path, number, value, text[begin:end])
        except DataError as error:
            on_error(error)
        else:
            yield number, row
        after = json_text.skip_blanks(text, end)
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
        begin = json_text.skip_blanks(text, end)
    rest = json_text.skip_blanks(text, end)
    if rest < len(text):
        raise DataError(
            Place(path, number),
            "not valid JSON: unexpected text after the list",
            _REMEDY,
            text[rest : rest + 80],
        )


def _checked(path: Path, number: int, row: Any, source: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            Place(path, number),
            "not a JSON object",
            'Each row must be an object such as {"name": "value"}',
            row,
        )
    # Only an escape can produce a lone surrogate, and few lines have one.
    lone = json_text.first_lone_surrogate(row) if "\\u" in source else None
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
