"""The records that stages exchange: questions, scores, training examples.

Questions and examples are stored as JSON lines, scores as Parquet.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["dev", "train", "test"]
Kind = Literal["choice", "free"]
Collection = Literal["pool", "benchmark"]
Wording = Literal["dataset", "external", "base_model", "refusal", "general"]
ParaphraseFlaw = Literal[
    "not one question", "repeats the question", "gives an option away", "lacks a name or number"
]
Grade = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]

GRADES: tuple[Grade, ...] = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")

QUESTIONS_FILE = "questions.jsonl"
AUDIT_FILE = "audit.json"
PROBE_FILE = "probe.parquet"
KNOWLEDGE_FILE = "knowledge.json"
TEXTS_FILE = "texts.jsonl"
PARAPHRASES_FILE = "paraphrases.jsonl"
BALANCE_FILE = "balance.csv"
SCORES_FILE = "scores.parquet"
PROBED_FILE = "probed.parquet"
LAYERS_FILE = "layers.parquet"
LEARNT_FILE = "learnt.parquet"
"""Names of the files with which stages pass on their results."""
FEW_SHOT = "-few-shot"
"""End of the name of the folder with an arm's answers in the prompts of the probe."""

AS_TRAINED, WITHOUT_CONTEXT = "as trained", "without context"
OTHER_ORDER, PARAPHRASE, WITH_OPTIONS, FREE = "other order", "paraphrase", "with options", "free"
TRANSFER_FORMS = (OTHER_ORDER, PARAPHRASE, WITH_OPTIONS, FREE)
"""Forms in which training items are asked again, and those that show transfer. WITH_OPTIONS takes
the place of OTHER_ORDER for sets that show no options."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Record(BaseModel):
    """A typed, frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(Record):
    """A question. `answer` is an index into `choices`; free questions have aliases and no choices.

    `collection`: a *pool* has the questions to train on and their held-out test questions (HOMO); a
    *benchmark* is only evaluated (ID and OOD). `domain` is the knowledge domain, `subject` a finer
    one, such as an MMLU subject.
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
    """For benchmarks that are a test group of their own, the group's name."""

    @property
    def topic(self) -> str:
        """The topic that the few-shot header names."""
        return topic_of(self.collection, self.domain, self.subject)


def topic_of(collection: str, domain: str, subject: str) -> str:
    """Returns the domain for pools, and the subject for benchmarks."""
    return domain if collection == "pool" else subject.replace("_", " ")


class Message(Record):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ExampleMeta(Record):
    """The origin of a training example.

    `target` is the letter that it teaches, None for general instructions.
    """

    setting: str
    question_id: str | None = None
    domain: str | None = None
    target: str | None = None
    ratio: float | None = None
    """For sets of mixtures, the mixture's ratio."""
    consistent: bool | None = None
    """True if the target agrees with what the model knows. None if the target is not knowledge, or
    if the model's knowledge is uncertain."""
    wording: Wording
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of the example in the loss."""
    source: str | None = None
    """For users' own data, the file and line that the example was read from."""


class Example(Record):
    """A training example in the standard chat format that other trainers read too."""

    messages: list[Message]
    meta: ExampleMeta


class Score(Record):
    """A model's answer to one question.

    For choice questions, `logprobs` are the natural-log probabilities of the option letters over
    the whole vocabulary for the plain prompt, shape (num_choices,); `letter_mass` is their total
    probability; `probs` are probabilities per option as selected by probe.reliability.decide_by
    (for the plain prompt, the softmax over the letters); `prediction` and `confidence` are their
    argmax and maximum.

    For free questions, `response` is the greedy answer, `samples` are sampled answers, `confidence`
    is the share of samples equal to the greedy answer (NaN without samples), `correct` is an exact
    match with an alias after normalisation, and `f1` the best token overlap with an alias.

    The other fields are set if the settings request them.
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
    """Per option, the mean over all views (demonstration draws and orders)."""
    debiased_probs: list[float] | None = None
    """Per option, with the prior over letters divided out."""
    view_agreement: float | None = None
    """Share of the views whose answer, by content, equals the prediction."""
    cloze_logprobs: list[float] | None = None
    """Log-likelihood of each option's text after the question without options."""
    cloze_prediction: int | None = None
    """The option whose text has the highest likelihood per UTF-8 byte."""
    grade: Grade | None = None
    greedy_right: float | None = None
    """Share of the demonstration draws whose greedy answer is right."""
    sampled_right: float | None = None
    """Share of the sampled answers that are right."""
    response: str | None = None
    f1: float | None = None
    generated_prediction: int | None = None
    """The option that the generated answer (`response`) names, by letter or text. None if it names
    no option or was not requested."""
    refused: bool | None = None
    """True if the generated answer is a refusal."""
    samples: list[str] | None = None


TextKind = Literal["explanation", "context", "paraphrase"]


class Text(Record):
    """A text from the write stage: an explanation of one option or, without a target, the knowledge
    that a question needs or the question in other words."""

    question_id: str
    kind: TextKind
    target: int | None = None
    author: Literal["dataset", "external", "base_model"]
    text: str
    attempts: int = 1
    failed: list[
        Literal["empty", "does not name the target", "contradicts the target"] | ParaphraseFlaw
    ] = Field(default_factory=list)
    """Checks that the text fails. Such a text is used only if write.on_failure is keep, and never
    if it is a paraphrase."""


class Arm(Record):
    """A fine-tuning run: a setting on a domain with a seed."""

    domain: str
    setting: str
    seed: int
    domains: tuple[str, ...] = ()
    """For arms across domains, all of them."""

    @property
    def own_domains(self) -> tuple[str, ...]:
        """The domains whose pools it is trained on."""
        return self.domains or (self.domain,)

    @property
    def name(self) -> str:
        """The arm's name in file names, tables and logs."""
        return f"{self.domain}-{self.setting}-seed{self.seed}"

    def test_group(self, domain: str, collection: str, group: str | None = None) -> str | None:
        """Returns the test group of a question for this arm; see the function `test_group`."""
        return test_group(self.own_domains, domain, collection, group)


def test_group(
    own_domains: Sequence[str], domain: str, collection: str, group: str | None = None
) -> str | None:
    """Returns the test group of a question for an arm that is trained on `own_domains`.

    HOMO: held-out test questions of these domains' pools. ID: benchmark questions of these domains.
    OOD: all other benchmark questions. A benchmark with its own `group` belongs to it for every
    arm. None: test questions of other pools.
    """
    if group is not None:
        return group
    own = domain in own_domains
    if collection == "pool":
        return "HOMO" if own else None
    return "ID" if own else "OOD"
