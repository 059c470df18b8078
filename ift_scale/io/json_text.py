"""The one reader of JSON that others wrote: strict where Python's is lenient, and with limits.

Refused with words, in addition to what is not JSON: duplicate keys, of which Python keeps the last;
nesting and integers that make Python's own functions fail later; and half of a surrogate pair.
"""

import json
from collections.abc import Iterable
from typing import Any

DEEPEST = 100
"""Levels of nesting. Python's own functions (`repr`, pickling) fail at a few hundred."""
_MOST_DIGITS = 40
"""Of an integer: more than any id has, and few enough for a float."""


class InvalidJson(ValueError):
    """A text that is not JSON as `decode` accepts it. `line` counts from 1 in the text.

    `key` is set for a duplicate key of an object.
    """

    def __init__(self, problem: str, line: int | None = None, key: str | None = None):
        super().__init__(problem)
        self.line, self.key = line, key


def decode(text: str) -> Any:
    """Returns the value of a whole text. Raises InvalidJson."""
    value, end = decode_at(text, skip_blanks(text, 0))
    if skip_blanks(text, end) < len(text):
        raise InvalidJson("unexpected text after the value", 1 + text.count("\n", 0, end))
    return value


def decode_at(text: str, begin: int) -> tuple[Any, int]:
    """Returns the value that starts at `begin`, and where it ends. Raises InvalidJson."""
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg} (column {error.colno})", error.lineno) from error
    except RecursionError:
        raise _too_deep(text, begin) from None
    opened = text.count("[", begin, end) + text.count("{", begin, end)
    if opened > DEEPEST and _depth(value) > DEEPEST:
        raise _too_deep(text, begin)
    return value, end


def skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def lone_surrogate(text: str) -> bool:
    r"""True if the text has half of a surrogate pair, such as "\ud800" in JSON.

    Such a text cannot be encoded.
    """
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def first_lone_surrogate(value: Any) -> tuple[str, str] | None:
    """Returns (field, text) of the first text in `value` that cannot be encoded, keys included."""
    parts: list[tuple[str, Any]] = [("", value)]
    while parts:
        field, part = parts.pop()
        if isinstance(part, str) and lone_surrogate(part):
            return ascii(field) if lone_surrogate(field) else field, part
        inside: Iterable[tuple[str, Any]] = ()
        if isinstance(part, dict):
            bad = next((key for key in part if lone_surrogate(key)), None)
            if bad is not None:
                return ascii(bad), bad
            inside = [(f"{field}.{key}" if field else key, inner) for key, inner in part.items()]
        elif isinstance(part, list):
            inside = [(f"{field}[{index}]", inner) for index, inner in enumerate(part)]
        parts += reversed(list(inside))
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise InvalidJson(f"duplicate key {key!r} in an object", key=key)
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise InvalidJson(f"an integer of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _too_deep(text: str, begin: int) -> InvalidJson:
    line = 1 + text.count("\n", 0, begin)
    return InvalidJson(f"too deeply nested: more than {DEEPEST} levels", line)


def _depth(value: Any) -> int:
    """Returns the levels of nesting, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        lists = [part.values() if isinstance(part, dict) else part for part in level]
        level = [inner for part in lists for inner in part if isinstance(inner, dict | list)]
    return depth
