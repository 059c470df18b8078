"""Settings of the questions stage: one section a kind of source."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ift_scale.config.section import Domain, PositiveInt, Section, Seed, Splits, Text
from ift_scale.records import Collection


class WorldSource(Section):
    kind: Literal["world"]


class PoolLimits(Section):
    max_train: PositiveInt | None = None
    """Use this many of the train questions, drawn by `questions.seed`; all when left out."""
    max_test: PositiveInt | None = None


class SubjectLimit(Section):
    max_per_subject: PositiveInt | None = None
    """Use this many test questions of each subject, drawn by `questions.seed`; all when left out."""


class TestGroup(Section):
    """What a source's questions are a test of, where it is not the arm's domain."""

    group: Domain | None = None
    """Of a benchmark: a test group of its own with this name, for every arm; by domain ID or OOD when left out."""


class PaperSource(PoolLimits):
    """A pool in the paper's JSON lines format: `id`, `question`, `choices`, `answer` (index), `explanation`."""

    kind: Literal["paper"]
    domain: Domain
    path: str
    """Folder that holds {dev,train,test}.jsonl, or the same with .gz."""


class MmluSource(SubjectLimit, TestGroup):
    """MMLU as a benchmark: Hendrycks' CSV folder (dev/, test/), JSON lines with a `subject` field, or a hub id."""

    kind: Literal["mmlu"]
    path: str
    name: str = "all"
    """The hub dataset's configuration; a local folder has none."""


class XiezhiSource(PoolLimits, TestGroup):
    """Raw Xiezhi as a pool: rows with one of `labels` and four options, as in the paper."""

    kind: Literal["xiezhi"]
    domain: Domain
    path: Text
    """Local file or folder, or the hub id of a copy; Xiezhi itself is published on GitHub only."""
    name: str | None = None
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """A row belongs to the pool when it has any of these labels; every row does when left out."""
    collection: Collection = "pool"
    splits: Splits | None = None
    """The dataset's splits for dev, train and test; 10, the rest and 250, drawn by `questions.seed`, when left out."""


class SubjectSource(SubjectLimit, TestGroup):
    """CMMLU or C-Eval as a benchmark: one part a subject, columns A, B, C, D and a letter."""

    kind: Literal["cmmlu", "ceval"]
    path: Text | None = None
    """Hub id, or the folder of the unpacked archive; the dataset's own hub id when left out."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """Subjects to use; all when left out."""
    domains: dict[str, Domain] = {}
    """Domains of subjects, where they are to differ from ours (data files beside the source's code)."""
    collection: Collection = "benchmark"
    splits: Splits | None = None


class EntityQuestionsSource(SubjectLimit, TestGroup):
    """EntityQuestions: free questions, one JSON file a relation and split. A relation is a subject here."""

    kind: Literal["entity_questions"]
    path: Text
    """The folder `dataset` of the unpacked archive; there is no hub id of the authors."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """Relations to use, such as P36; all when left out."""
    domain: Domain = "entity_questions"
    collection: Collection = "benchmark"
    splits: Splits | None = None


class DatasetSource(PoolLimits, TestGroup):
    """A published dataset whose columns are known: docs/questions.md lists what each default is."""

    kind: Literal["medmcqa", "medqa", "arc", "truthfulqa", "popqa"]
    path: Text | None = None
    """Hub id, local folder, or a .json, .jsonl, .csv, .tsv or .parquet file; the dataset's own hub id when left out."""
    name: str | None = None
    """The dataset's configuration, where it has several."""
    domain: Domain | None = None
    collection: Collection | None = None
    splits: Splits | None = None
    """The dataset's splits, slices such as `validation[:10]` too, for dev, train and test."""


AnswerForm = Literal["auto", "letter", "index_from_0", "index_from_1", "text"]


class HubFields(Section):
    """Columns of a dataset; one inside another is written with a dot, such as `choices.text`."""

    question: str = "question"
    choices: str | Annotated[list[str], Field(min_length=2)] = "choices"
    """Column with the list of options, or a list of columns with one option each, such as [A, B, C, D]."""
    answer: str = "answer"
    """Column that names the right option, in the form that `answer_form` gives."""
    answer_form: AnswerForm = "auto"
    """A letter, an index that counts from 0 or from 1, or the option's own text. `auto` takes a letter, an index from 0 or a
    text, and refuses a value that may mean two options."""
    aliases: str | None = None
    """Column with the list of right answers. It makes the questions free ones: `choices` and `answer` are not read."""
    id: str | None = None
    subject: str | None = None
    explanation: str | None = None


class HubSource(PoolLimits, TestGroup):
    """Any Hugging Face dataset, by hub name or local path."""

    kind: Literal["huggingface"]
    path: str
    name: str | None = None
    domain: Domain
    collection: Collection = "pool"
    splits: Splits
    fields: HubFields = HubFields()


Source = Annotated[
    WorldSource
    | PaperSource
    | MmluSource
    | XiezhiSource
    | SubjectSource
    | EntityQuestionsSource
    | DatasetSource
    | HubSource,
    Field(discriminator="kind"),
]


Removed = Literal["none", "train", "held_out", "demonstrated", "equal_options"]


class AuditConfig(Section):
    """Questions that stand twice: what is trained on and asked too, or in several domains. Counted always, left out by setting."""

    near: bool = True
    """Also look for questions that are similar but not equal; exact duplicates cost next to nothing and are always looked for."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Similar from here on: shared runs of three words, of all that either question or its options have (Jaccard)."""
    num_permutations: Annotated[int, Field(ge=16)] = 128
    """Length of the MinHash signatures: longer ones propose fewer pairs in vain and take more memory."""
    remove: Removed | Annotated[list[Removed], Field(min_length=1)] = "none"
    """What is left out: nothing, as in the paper, or one or several of: `train` or `held_out`, the two sides of a pair of a train
    and a held-out question; `demonstrated`, tests that are demonstrations too; `equal_options`, train and test questions with an
    option equal to the right one. Demonstrations always stay."""

    @model_validator(mode="after")
    def _check_remove(self) -> "AuditConfig":
        removed = self.removed
        if isinstance(self.remove, list) and ("none" in removed or len(removed) < len(self.remove)):
            raise ValueError(
                "remove: a list names each of train, held_out, demonstrated and equal_options at most once"
            )
        if {"train", "held_out"} <= removed:
            raise ValueError(
                "remove: train and held_out are the two sides of the same pairs; choose one"
            )
        return self

    @property
    def removed(self) -> set[str]:
        return set(self.remove) if isinstance(self.remove, list) else {self.remove}


class QuestionsConfig(Section):
    sources: Annotated[list[Source], Field(min_length=1)] = [WorldSource(kind="world")]
    seed: Seed = 42
    """Draws the subset where a source is limited."""
    audit: AuditConfig = AuditConfig()


def collection_of(source: Source) -> Collection:
    """What a source's questions are for. Where a dataset has no train split, or free questions only, it is a benchmark."""
    chosen: Collection | None = getattr(source, "collection", None)
    return chosen or ("benchmark" if source.kind in ("mmlu", "truthfulqa", "popqa") else "pool")


def group_of_source(source: Source) -> str | None:
    return getattr(source, "group", None)


def is_pool(source: Source) -> bool:
    """Whether there is something to train on: sets are built of choice questions."""
    is_free = source.kind in ("popqa", "entity_questions") or (
        isinstance(source, HubSource) and source.fields.aliases is not None
    )
    return collection_of(source) == "pool" and not is_free
