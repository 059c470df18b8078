"""The records that stages hand to each other: questions, scores, training examples.

Questions and examples travel as JSON lines, scores as Parquet.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["dev", "train", "test"]
Kind = Literal["choice", "free"]
Collection = Literal["pool", "benchmark"]
Wording = Literal["dataset", "external", "base_model", "refusal", "general"]
Grade = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]

GRADES: tuple[Grade, ...] = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")

QUESTIONS_FILE = "questions.jsonl"
AUDIT_FILE = "audit.json"
PROBE_FILE = "probe.parquet"
KNOWLEDGE_FILE = "knowledge.json"
TEXTS_FILE = "texts.jsonl"
BALANCE_FILE = "balance.csv"
SCORES_FILE = "scores.parquet"
"""Files by which stages hand on their results."""

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
    group: str | None = None
    """Of a benchmark that is a test group of its own: the group's name."""

    @property
    def topic(self) -> str:
        """What the few-shot header says the questions are about."""
        return topic_of(self.collection, self.domain, self.subject)


def topic_of(collection: str, domain: str, subject: str) -> str:
    """A pool is about its domain, a benchmark's question about its subject."""
    return domain if collection == "pool" else subject.replace("_", " ")


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class ExampleMeta(Record):
    """Where a training example comes from. `target` is the letter it teaches, None for a general instruction."""

    setting: str
    question_id: str | None = None
    domain: str | None = None
    target: str | None = None
    ratio: float | None = None
    """Of a mixture's set: its ratio."""
    consistent: bool | None = None
    """Whether the target agrees with what the model knows; None where it is no knowledge, or not known."""
    wording: Wording
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How much the example counts in the loss."""


class Example(Record):
    """One training example in the standard chat form, readable by any other trainer."""

    messages: list[Message]
    meta: ExampleMeta


class Score(Record):
    """What a model answers to one question.

    Of a choice question: `logprobs`, the natural-log probabilities of the option letters over the whole vocabulary, shape
    (num_choices,), from the plain prompt; `letter_mass`, the probability that they hold together; `probs`, by option, as
    probe.reliability.decide_by says (from the plain prompt: the letters' softmax); `prediction` and `confidence`, their arg max and
    max. Of a free question: `response`, the greedy answer; `samples`; `confidence`, the share of samples that say the same (NaN
    where none were drawn); `correct`, an exact match with an alias after normalisation; `f1`. The rest is there where it was asked
    for.
    """

    kind: Kind = "choice"
    question_id: str
    domain: str
    subject: str
    collection: Collection
    split: Split
    group: str | None = None
    answer: int | None
    logprobs: list[float] | None
    probs: list[float] | None
    letter_mass: float | None
    prediction: int | None
    confidence: float
    correct: bool
    average_probs: list[float] | None = None
    """By option, the mean over all views (demonstration draws and orders)."""
    debiased_probs: list[float] | None = None
    """By option, with the letters' prior divided out."""
    view_agreement: float | None = None
    """Share of the views whose answer, by content, is the prediction."""
    cloze_logprobs: list[float] | None = None
    """Log-likelihood of each option's text behind the question without options."""
    cloze_prediction: int | None = None
    """The option whose text is likeliest for its length in UTF-8 bytes."""
    grade: Grade | None = None
    greedy_right: float | None = None
    """Share of the demonstration draws whose greedy answer is right; `sampled_right` the same of sampled ones."""
    sampled_right: float | None = None
    response: str | None = None
    f1: float | None = None
    generated_prediction: int | None = None
    """The option that a generated answer (`response`) names, by letter or text; None where it names none, or was not asked for."""
    refused: bool | None = None
    """Whether the generated answer is a refusal."""
    samples: list[str] | None = None


class Text(Record):
    """A text that the write stage made: an explanation of one option, or the knowledge that a question needs (no target)."""

    question_id: str
    kind: Literal["explanation", "context"]
    target: int | None = None
    author: Literal["dataset", "external", "base_model"]
    text: str
    attempts: int = 1
    failed: list[Literal["empty", "does not name the target", "contradicts the target"]] = Field(
        default_factory=list
    )
    """Checks that it still fails; where there are any, it may go into no set unless write.on_failure is keep."""


class Arm(Record):
    """One fine-tuning run: a setting on a domain with a seed."""

    domain: str
    setting: str
    seed: int
    domains: tuple[str, ...] = ()
    """Of an arm across domains, these."""

    @property
    def own_domains(self) -> tuple[str, ...]:
        """The domains on whose pools it is trained."""
        return self.domains or (self.domain,)

    @property
    def name(self) -> str:
        return f"{self.domain}-{self.setting}-seed{self.seed}"

    def test_group(self, domain: str, collection: str, group: str | None = None) -> str | None:
        return test_group(self.own_domains, domain, collection, group)


def test_group(
    own_domains: Sequence[str], domain: str, collection: str, group: str | None = None
) -> str | None:
    """The test group of a question for an arm that is trained on `own_domains`.

    HOMO: the held-out tests of these domains' pools; ID: the benchmarks' part of these domains; OOD: the rest of the
    benchmarks. A benchmark that is a group of its own is that group for every arm. None for tests of other pools.
    """
    if group is not None:
        return group
    own = domain in own_domains
    if collection == "pool":
        return "HOMO" if own else None
    return "ID" if own else "OOD"
