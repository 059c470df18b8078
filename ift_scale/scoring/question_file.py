"""questions.jsonl read by position: a pool of any size costs 16 bytes of memory a question, not the question.

One pass notes where each line begins and which group it belongs to; questions are parsed when they are asked.
"""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json

from ift_scale.records import Question, topic_of


class GroupKey(NamedTuple):
    """What decides whether and in which order questions are asked."""

    kind: str
    collection: str
    topic: str
    domain: str
    split: str
    num_choices: int
    group: str | None = None

    @classmethod
    def of(cls, question: Question) -> "GroupKey":
        return cls.of_row(vars(question))

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "GroupKey":
        """The same of a line's fields: most rows are only counted and never become a Question."""
        topic = topic_of(row["collection"], row["domain"], row["subject"])
        num_choices = len(row.get("choices", ()))
        return cls(
            row["kind"],
            row["collection"],
            topic,
            row["domain"],
            row["split"],
            num_choices,
            row.get("group"),
        )


class QuestionFile:
    """The questions of a finished questions stage. `dev` holds the demonstrations; all others stay on the disk."""

    def __init__(self, path: Path):
        self.path = path
        self.dev: list[Question] = []
        self.first_rows: list[int] = []
        number_of: dict[GroupKey, int] = {}
        # Arrays rather than lists of numbers: these are what grows with the pool.
        offsets, groups, lengths = array("q"), array("i"), array("i")
        with path.open("rb") as file:
            offset = 0
            for line in file:
                row = from_json(line)
                key = GroupKey.of_row(row)
                if key.split == "dev":
                    self.dev.append(Question.model_construct(**row))
                if key not in number_of:
                    number_of[key] = len(number_of)
                    self.first_rows.append(len(groups))
                groups.append(number_of[key])
                offsets.append(offset)
                lengths.append(len(line))
                offset += len(line)
        self.groups = list(number_of)
        self._offsets, self._groups = (
            np.frombuffer(offsets, np.int64),
            np.frombuffer(groups, np.int32),
        )
        self.lengths = np.frombuffer(lengths, np.int32)
        self.sizes = np.bincount(self._groups, minlength=len(self.groups))

    def select(self, wanted: Callable[[GroupKey], bool]) -> np.ndarray:
        """Row numbers of the wanted groups, in the order of asking: by kind, collection and topic, then as in the file.

        Questions of one topic share a few-shot prefix, so they stand together.
        """
        rank_of = {
            topic: rank for rank, topic in enumerate(sorted({group[:3] for group in self.groups}))
        }
        topic_rank = np.array([rank_of[group[:3]] for group in self.groups])
        chosen = np.array([wanted(group) for group in self.groups], dtype=bool)
        rows = np.flatnonzero(chosen[self._groups])
        return rows[np.argsort(topic_rank[self._groups[rows]], kind="stable")]

    def read(self, rows: Sequence[int] | np.ndarray) -> list[Question]:
        """The questions of these rows, in this order."""
        questions = []
        with self.path.open("rb") as file:
            position = 0
            for offset, length in zip(
                self._offsets[rows].tolist(), self.lengths[rows].tolist(), strict=True
            ):
                if offset != position:
                    file.seek(offset)
                questions.append(_parse(file.read(length)))
                position = offset + length
        return questions

    def chance_accuracy(self) -> float:
        """The mean accuracy of guessing among the options of the test questions."""
        tests = [
            (group.num_choices, size)
            for group, size in zip(self.groups, self.sizes, strict=True)
            if group.split == "test" and group.num_choices
        ]
        sizes = [size for _, size in tests]
        return float(np.average([1 / choices for choices, _ in tests], weights=sizes))


def _parse(line: bytes) -> Question:
    # Unvalidated: the file's digest says that it is what the questions stage has checked and written.
    return Question.model_construct(**from_json(line))
