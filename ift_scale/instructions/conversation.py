"""A checked conversation: what every reader of instructions gives and every user may rely on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ift_scale import draws
from ift_scale.errors import DataError, Place
from ift_scale.records import Message


class Conversation(NamedTuple):
    """A conversation that can be trained on.

    `messages`: at most one system message, then turns of user and assistant that alternate, the
    last of them the assistant's; none is empty. `id`: digest of the messages; the second
    conversation with the same messages has `-2` appended, the third `-3`. `weight`: weight of the
    example in the loss.
    """

    messages: list[Message]
    place: Place
    id: str
    weight: float = 1.0


class PlacedTurn(NamedTuple):
    """A message and the field that it comes from."""

    message: Message
    field: str


def checked(turns: Sequence[PlacedTurn], place: Place) -> list[Message]:
    """Returns the turns' messages.

    Raises DataError if one is empty, the roles are out of order, or the last is not the
    assistant's.
    """
    expected = "user"
    for number, (message, field) in enumerate(turns):
        at = replace(place, field=field)
        if not message.content.strip():
            raise DataError(at, "is empty", "Write its text, or remove the row", message.content)
        if message.role == "system" and number == 0:
            continue
        if message.role != expected:
            problem = f"roles are out of order, the {expected}'s turn is missing before it"
            remedy = (
                "A conversation is an optional system message, then user and assistant in turn; "
                "merge or remove turns"
            )
            raise DataError(at, problem, remedy, message.role)
        expected = "user" if expected == "assistant" else "assistant"
    if not turns or turns[-1].message.role != "assistant":
        raise DataError(
            replace(place, field=turns[-1].field) if turns else place,
            "no answer to learn from, the last turn is not the assistant's",
            "Add the answer, or remove the turn",
            turns[-1].message.role if turns else None,
        )
    return [turn.message for turn in turns]


def id_of(messages: Sequence[Message]) -> str:
    """Returns the digest of checked messages; their contents determine their roles."""
    return draws.content_id([message.content for message in messages])
