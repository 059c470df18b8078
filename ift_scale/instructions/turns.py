"""Reads one turn of a conversation: its role, its text, and tool calls as text if requested.

Turns have `role` and `content` (chat messages, OpenAI) or `from` and `value` (ShareGPT). Tool calls
become text as in the Hermes format: `<tool_call>` with one JSON object in the assistant's turn,
`<tool_response>` in the user's.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.instructions.conversation import PlacedTurn
from ift_scale.io import json_text
from ift_scale.records import Message

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_RESULTS = ("tool", "function", "observation", "tool_response", "function_response")
_CALLS = ("function_call", "tool_call")
_KNOWN_KEYS = {"role", "content", "from", "value", "weight", "tool_calls", "function_call"}
# They identify a speaker or a call and carry no text.
_KNOWN_KEYS |= {"name", "tool_call_id", "id"}
_TOOLS_REMEDY = (
    "Set tools: text to keep tool calls and results as text, or remove the row (or set on_error: "
    "skip)"
)


def read_turns(
    place: Place, column: str, values: Any, tools: str, ignored: Counter[str]
) -> list[PlacedTurn]:
    """Returns the turns in a list of objects.

    `column`: its name in messages. `tools`: InstructionSource.tools. `ignored` counts the keys of
    turns that are not used. Raises DataError for a turn that cannot be read.
    """
    turns: list[PlacedTurn] = []
    after_result = False
    for number, value in enumerate(_list(place, column, values)):
        field = f"{column}[{number}]"
        message, is_result = _turn(place, field, value, tools)
        ignored.update(
            f"{column}[].{key}" for key in value.keys() - _KNOWN_KEYS if value[key] is not None
        )
        if is_result and after_result:  # results of parallel calls are one turn
            last = turns.pop()
            content = f"{last.message.content}\n{message.content}"
            message, field = Message(role="user", content=content), last.field.split(".")[0]
        key = "content" if "content" in value else "value"
        turns.append(PlacedTurn(message, f"{field}.{key}"))
        after_result = is_result
    return turns


def declared_tools(place: Place, value: Any, tools: str) -> str | None:
    """Returns the text that lists the tools of a column `tools`; None if it has none."""
    if value in (None, "", "[]", []):
        return None
    if tools == "refuse":
        raise DataError(replace(place, field="tools"), "declares tools", _TOOLS_REMEDY, value)
    listed = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"You can call these tools:\n{listed}"


def text(place: Place, field: str, value: Any) -> str:
    """Returns a value that must be a non-empty text; DataError if it is not."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            replace(place, field=field),
            "missing, empty or not a text",
            "It must be a non-empty string; fix or remove the row",
            value,
        )
    if json_text.lone_surrogate(value):
        problem = "holds half of a surrogate pair, which is not a character"
        raise DataError(replace(place, field=field), problem, "Remove it", value)
    return value


def json_list(place: Place, field: str, value: Any) -> Any:
    """Returns the list that a text such as a cell of a CSV file has as JSON; others unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json_text.decode(value)
    except json_text.InvalidJson as error:
        remedy = "Write the list as JSON, or save the data as JSON lines or Parquet"
        raise DataError(
            replace(place, field=field), f"not valid JSON: {error}", remedy, value
        ) from error


def _list(place: Place, column: str, values: Any) -> Sequence[Any]:
    values = json_list(place, column, values)
    if not isinstance(values, list) or not values:
        remedy = 'It must be a list of turns such as {"role": "user", "content": "..."}'
        raise DataError(
            replace(place, field=column), "missing, empty or not a list", remedy, values
        )
    return values


def _turn(place: Place, field: str, value: Any, tools: str) -> tuple[Message, bool]:
    """Returns the message, and True if it is a tool's result."""
    if not isinstance(value, dict):
        remedy = 'A turn must be an object such as {"role": "user", "content": "..."}'
        raise DataError(replace(place, field=field), "not an object", remedy, value)
    role_key = "role" if "role" in value else "from"
    name = value.get(role_key)
    key = "content" if "content" in value else "value"
    calls = value.get("tool_calls") or value.get("function_call")
    if (calls or name in _RESULTS or name in _CALLS) and tools == "refuse":
        raise DataError(replace(place, field=field), "a tool turn", _TOOLS_REMEDY, name)
    if value.get("weight") == 0:
        remedy = "All assistant turns are trained; remove the field, or end the row before the turn"
        at = replace(place, field=f"{field}.weight")
        raise DataError(at, "excludes a turn from training", remedy, value["weight"])
    at_content, content = f"{field}.{key}", value.get(key)
    if name in _RESULTS:
        inner = _content(place, at_content, content)
        return Message(role="user", content=f"<tool_response>\n{inner}\n</tool_response>"), True
    if name in _CALLS:
        inner = _content(place, at_content, content)
        return Message(role="assistant", content=f"<tool_call>\n{inner}\n</tool_call>"), False
    if not isinstance(name, str) or name.lower() not in _ROLES:
        at = replace(place, field=f"{field}.{role_key}")
        raise DataError(at, "an unknown role", did_you_mean(str(name), _ROLES).capitalize(), name)
    if calls:
        parts = [] if content in (None, "") else [_content(place, at_content, content)]
        parts += [_call(call) for call in (calls if isinstance(calls, list) else [calls])]
        return Message(role=_ROLES[name.lower()], content="\n".join(parts)), False
    return Message(role=_ROLES[name.lower()], content=_content(place, at_content, content)), False


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else call
    return f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"


def _content(place: Place, field: str, content: Any) -> str:
    """Returns a turn's text; a list of text parts is joined."""
    if not isinstance(content, list):
        return text(place, field, content)
    parts = []
    for number, part in enumerate(content):
        at = f"{field}[{number}]"
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            remedy = "Only text can be trained on; remove the part or the row"
            raise DataError(
                replace(place, field=at), "a content part that is not text", remedy, part["type"]
            )
        value = part.get("text") if isinstance(part, dict) else part
        parts.append(text(place, at, value))
    return text(place, field, "".join(parts))
