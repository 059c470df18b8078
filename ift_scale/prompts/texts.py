"""The file of written texts: how the write stage hands explanations and contexts to others."""

from pathlib import Path
from typing import Literal, NamedTuple

from ift_scale.io.files import read_jsonl
from ift_scale.records import Text

TextKind = Literal["explanation", "context"]
AuthorGroup = Literal["external", "base_model"]
"""`external`: a question's own explanation, or whoever write.external says."""


class TextKey(NamedTuple):
    """What a text is asked for by. A context has no target, and its author group is always `external`."""

    question_id: str
    kind: TextKind
    target: int | None
    author: AuthorGroup


def key_of(text: Text) -> TextKey:
    by_model = text.kind == "explanation" and text.author == "base_model"
    return TextKey(
        text.question_id, text.kind, text.target, "base_model" if by_model else "external"
    )


def read(path: Path) -> dict[TextKey, Text]:
    """All texts of a finished write stage, those that fail their checks too (`Text.failed`)."""
    return {key_of(text): text for text in read_jsonl(path, Text)}
