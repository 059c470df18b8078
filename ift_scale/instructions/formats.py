"""The formats of instructions: how each is recognised by its columns, and read.

messages:   {"messages": [{"role": "user", "content": "..."}, ...]}          (chat, OpenAI)
sharegpt:   {"conversations": [{"from": "human", "value": "..."}, ...]}
alpaca:     {"instruction": "...", "input": "", "output": "...", "history": [["...", "..."]]}
completion: {"prompt": "...", "completion": "..."}, or lists of messages, as TRL has them

All may have `system`, and `weight`, the example's weight in the loss; the first two may have
`tools`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ift_scale.config.instructions import InstructionFormat
from ift_scale.errors import DataError, Place
from ift_scale.instructions.conversation import PlacedTurn
from ift_scale.instructions.turns import declared_tools, json_list, read_turns, text
from ift_scale.io.jsonl import Row
from ift_scale.records import Message


class Columns(NamedTuple):
    """A format's columns: `required` has the names that each may have, as has `optional`."""

    required: tuple[tuple[str, ...], ...]
    optional: tuple[tuple[str, ...], ...]


_SHARED = (("system",), ("weight",))
COLUMNS: Mapping[InstructionFormat, Columns] = {
    "messages": Columns((("messages",),), (("tools",), *_SHARED)),
    "sharegpt": Columns((("conversations", "conversation"),), (("tools",), *_SHARED)),
    "alpaca": Columns(
        (("instruction",), ("output", "response")), (("input", "context"), ("history",), *_SHARED)
    ),
    "completion": Columns((("prompt",), ("completion", "response")), _SHARED),
}


def detect(place: Place, row: Row) -> InstructionFormat:
    """Returns the format whose columns the row has.

    Raises DataError if it has those of none or of several formats.
    """
    fitting = _fitting(row)
    if len(fitting) > 1:
        remedy = f"Set format to one of {', '.join(fitting)}, or remove the other columns"
        raise DataError(place, "has the columns of several formats", remedy, list(row))
    if not fitting:
        needed = "; ".join(_needed(name) for name in COLUMNS)
        raise DataError(
            place, "has no known format", f"Rename its columns. Known: {needed}", list(row)
        )
    return fitting[0]


def _fitting(row: Row) -> list[InstructionFormat]:
    """Returns the formats whose required columns the row has, with values if any is so complete."""

    def has(name: InstructionFormat, filled: bool) -> bool:
        return all(
            any(column in row and not (filled and row[column] is None) for column in names)
            for names in COLUMNS[name].required
        )

    complete = [name for name in COLUMNS if has(name, filled=True)]
    return complete or [name for name in COLUMNS if has(name, filled=False)]


def _needed(name: InstructionFormat) -> str:
    return " and ".join(names[0] for names in COLUMNS[name].required)


class RowReader:
    """Reads the rows of one source, which have one format: the given or the first row's.

    `format`: None until a row was read, if `format` was `auto`. `ignored` counts columns, and keys
    of turns, that are not used.
    """

    def __init__(self, format: str, tools: str):
        self.format: InstructionFormat | None = next((f for f in COLUMNS if f == format), None)
        self._tools = tools
        self.ignored: Counter[str] = Counter()

    def turns(self, place: Place, row: Row) -> list[PlacedTurn]:
        """Returns the turns of a row; raises DataError if it cannot be read."""
        kind = self.format or detect(place, row)
        fitting = _fitting(row)
        if kind not in fitting and fitting:
            remedy = "Put each format into a file of its own, or convert the row"
            problem = f"its format is {fitting[0]}, but the file's is {kind}"
            raise DataError(place, problem, remedy, list(row))
        turns = self._read(kind, place, row)
        self.format = kind
        known = {_column(row, names) for names in COLUMNS[kind].required + COLUMNS[kind].optional}
        self.ignored.update(
            name for name, value in row.items() if name not in known and value not in (None, "")
        )
        return turns

    def weight(self, place: Place, row: Row) -> float:
        """Returns the example's weight in the loss, 1 if the row has none."""
        value = row.get("weight")
        if value in (None, ""):
            return 1.0
        try:
            weight = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            weight = math.nan
        if not (weight > 0 and math.isfinite(weight)):
            remedy = "It must be a positive number; remove a row that must not be trained on"
            raise DataError(
                replace(place, field="weight"), "is not a weight in the loss", remedy, value
            )
        return weight

    def _read(self, kind: InstructionFormat, place: Place, row: Row) -> list[PlacedTurn]:
        if kind == "alpaca":
            return _alpaca(place, row)
        if kind == "completion":
            return self._completion(place, row)
        column = _column(row, COLUMNS[kind].required[0])
        turns = read_turns(place, column, row.get(column), self._tools, self.ignored)
        listed = declared_tools(place, row.get("tools"), self._tools)
        return _with_system(place, row, turns, listed)

    def _completion(self, place: Place, row: Row) -> list[PlacedTurn]:
        turns: list[PlacedTurn] = []
        answer = _column(row, ("completion", "response"))
        for column, role in (("prompt", "user"), (answer, "assistant")):
            value = row.get(column)
            if isinstance(value, list):
                turns += read_turns(place, column, value, self._tools, self.ignored)
            else:
                turns.append(_turn(role, text(place, column, value), column))
        return _with_system(place, row, turns)


def _alpaca(place: Place, row: Row) -> list[PlacedTurn]:
    output = _column(row, ("output", "response"))
    extra = _column(row, ("input", "context"))
    added = text(place, extra, row[extra]) if row.get(extra) not in (None, "") else ""
    asked = text(place, "instruction", row.get("instruction"))
    turns = [
        *_history(place, row.get("history")),
        _turn("user", asked + (f"\n\n{added}" if added else ""), "instruction"),
        _turn("assistant", text(place, output, row.get(output)), output),
    ]
    return _with_system(place, row, turns)


def _column(row: Row, names: tuple[str, ...]) -> str:
    """Returns the first of the names that the row has a value for, or else the first one."""
    return next((name for name in names if row.get(name) is not None), names[0])


def _turn(role: Any, content: str, field: str) -> PlacedTurn:
    return PlacedTurn(Message(role=role, content=content), field)


def _with_system(
    place: Place, row: Row, turns: list[PlacedTurn], listed: str | None = None
) -> list[PlacedTurn]:
    """Puts the column `system` and the list of tools into the first message."""
    system = None
    if row.get("system") not in (None, ""):
        system = text(place, "system", row["system"])
    if turns and turns[0].message.role == "system":
        if system is not None:
            remedy = "Remove one of the two"
            raise DataError(
                replace(place, field="system"), "there is a system message too", remedy, system
            )
        if listed is None:
            return turns
        system, turns = turns[0].message.content, turns[1:]
    parts = [part for part in (system, listed) if part is not None]
    return [_turn("system", "\n\n".join(parts), "system"), *turns] if parts else turns


def _history(place: Place, value: Any) -> Iterator[PlacedTurn]:
    """Yields the earlier turns of an Alpaca row, a list of [instruction, output]."""
    pairs = json_list(place, "history", value)
    if pairs in (None, "", []):
        return
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
        field = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            remedy = "It must be a list of [instruction, output] pairs"
            raise DataError(replace(place, field=field), "not a pair of texts", remedy, pair)
        for index, role in enumerate(("user", "assistant")):
            at = f"{field}[{index}]"
            yield _turn(role, text(place, at, pair[index]), at)
