"""The records that stages hand to each other: questions, scores, training examples.

Questions and examples travel as JSON lines, scores as Parquet; `artifacts` writes and reads the files.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Split = Literal["dev", "train", "test"]
Kind = Literal["choice", "free"]
Collection = Literal["pool", "benchmark"]
Group = Literal["HOMO", "ID", "OOD"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Record(BaseModel):
    """Typed, frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(Record):
    """One question. `answer` is the index into `choices`; a free question has aliases and no choices.

    `collection` says what it is for: a *pool* holds what is trained on and its held-out test (HOMO), a *benchmark* is only
    evaluated (ID and OOD). `domain` is the knowledge domain, `subject` the finer one (an MMLU subject, say).
    """

    id: str
    domain: str
    subject: str
    collection: Collection
    split: Split
    kind: Kind = "choice"
    question: str
    choices: list[str] = Field(default_factory=list)
    answer: int | None = None
    aliases: list[str] = Field(default_factory=list)
    explanation: str | None = None

    @property
    def topic(self) -> str:
        """What the few-shot header says the questions are about."""
        return self.domain if self.collection == "pool" else self.subject.replace("_", " ")


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class ExampleMeta(Record):
    """Where a training example comes from. `target` is the letter it teaches, None for a general instruction."""

    setting: str
    question_id: str | None = None
    domain: str | None = None
    target: str | None = None
    wording: Literal["dataset", "base_model", "general"]
    weight: float = 1.0


class Example(Record):
    """One training example in the standard chat form, readable by any other trainer."""

    messages: list[Message]
    meta: ExampleMeta


class Score(Record):
    """What a model answers to one choice question.

    `logprobs`: natural-log probabilities of the option letters over the whole vocabulary, shape (num_choices,);
    `probs`: their softmax; `letter_mass`: the probability that the letters hold together.
    """

    question_id: str
    domain: str
    subject: str
    collection: Collection
    split: Split
    answer: int
    logprobs: list[float]
    probs: list[float]
    letter_mass: float
    prediction: int
    confidence: float
    correct: bool

    @classmethod
    def of(cls, question: Question, logprobs: np.ndarray) -> "Score":
        """The score of `question` from its letters' log-probabilities, float64, shape (num_choices,)."""
        assert question.answer is not None
        weights = np.exp(logprobs - logprobs.max())
        probs = weights / weights.sum()
        prediction = int(probs.argmax())
        return cls(
            question_id=question.id,
            domain=question.domain,
            subject=question.subject,
            collection=question.collection,
            split=question.split,
            answer=question.answer,
            logprobs=logprobs.tolist(),
            probs=probs.tolist(),
            letter_mass=float(np.exp(logprobs).sum()),
            prediction=prediction,
            confidence=float(probs[prediction]),
            correct=prediction == question.answer,
        )


class Arm(Record):
    """One fine-tuning run: a setting on a domain with a seed."""

    domain: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.domain}-{self.setting}-seed{self.seed}"
