"""The files of written texts, from the write stage for other stages."""

from pathlib import Path
from typing import Literal, NamedTuple

from ift_scale.io.files import read_jsonl
from ift_scale.records import Text, TextKind

AuthorGroup = Literal["external", "base_model"]
"""`external`: the question's own explanation, or one by the author that write.external names."""


class TextKey(NamedTuple):
    """Identifies a text. A context has no target, and its author group is always `external`."""

    question_id: str
    kind: TextKind
    target: int | None
    author: AuthorGroup


def key_of(text: Text) -> TextKey:
    """Returns the key by which other stages look a text up."""
    by_model = text.kind == "explanation" and text.author == "base_model"
    return TextKey(
        text.question_id, text.kind, text.target, "base_model" if by_model else "external"
    )


def read(path: Path) -> dict[TextKey, Text]:
    """Returns all explanations and contexts, including failed ones (`Text.failed`)."""
    return {key_of(text): text for text in read_jsonl(path, Text)}


def read_paraphrases(path: Path) -> dict[str, str]:
    """Returns the written paraphrases that pass their checks, by question id."""
    return {text.question_id: text.text for text in read_jsonl(path, Text) if not text.failed}
