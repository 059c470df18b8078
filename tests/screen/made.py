"""Examples and measures for tests of the screen."""

from pathlib import Path
from typing import Any

from ift_scale.errors import Place
from ift_scale.instructions.conversation import Conversation
from ift_scale.records import Message
from ift_scale.screen.asker import SCHEMA

CHOICE = "Which metal is liquid?\nA. iron\nB. mercury\nC. gold\nAnswer:"


def conversation(asked: str, answer: str, weight: float = 1.0) -> Conversation:
    messages = [Message(role="user", content=asked), Message(role="assistant", content=answer)]
    return Conversation(messages, Place(Path("data.jsonl"), 7), "0a", weight)


def measures(kind: str, **values: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    return empty | {"kind": kind, "too_long": False} | values
