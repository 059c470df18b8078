"""Settings of the questions stage, with one section per kind of source."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ift_scale.config.section import Domain, PositiveInt, Section, Seed, Splits, Text
from ift_scale.records import Collection


class WorldSource(Section):
    """The built-in world of generated facts: a pool and a benchmark in each of four domains."""

    kind: Literal["world"]


class PoolLimits(Section):
    """Limits of a pool."""

    max_train: PositiveInt | None = None
    """Number of train questions to use, drawn with `questions.seed`. Default: all."""
    max_test: PositiveInt | None = None
    """Number of test questions to use, drawn with `questions.seed`. Default: all."""


class SubjectLimit(Section):
    """Limit of a source with subjects."""

    max_per_subject: PositiveInt | None = None
    """Number of test questions to use per subject, drawn with `questions.seed`. Default: all."""


class FactsSource(PoolLimits, SubjectLimit):
    """Built-in facts from open data: pools and benchmarks in geography, society (currencies,
    languages, calling codes) and chemistry, and a benchmark in aviation. `max_train` and `max_test`
    apply to each pool, `max_per_subject` to each benchmark."""

    kind: Literal["facts"]
    domains: (
        Annotated[
            list[Literal["geography", "society", "chemistry", "aviation"]], Field(min_length=1)
        ]
        | None
    ) = None
    """Domains to use. Default: all."""


class TestGroup(Section):
    """Assignment of a source to a test group."""

    group: Domain | None = None
    """For benchmarks, the name of a separate test group of this source, the same for every arm.
    Default: ID or OOD, depending on the arm's domain."""


class PaperSource(PoolLimits):
    """A pool in the paper's JSON lines format with the fields `id`, `question`, `choices`, `answer`
    (index) and `explanation`."""

    kind: Literal["paper"]
    domain: Domain
    """Domain of all questions."""
    path: str
    """Folder with dev.jsonl, train.jsonl and test.jsonl, optionally compressed (.gz)."""


class MmluSource(SubjectLimit, TestGroup):
    """MMLU as a benchmark."""

    kind: Literal["mmlu"]
    path: str
    """Hendrycks' CSV folder (dev/, test/), JSON lines with a `subject` field, or a hub id."""
    name: str = "all"
    """Configuration of the hub dataset; ignored for local folders."""


class XiezhiSource(PoolLimits, TestGroup):
    """Raw Xiezhi as a pool: rows with one of `labels` and four options, as in the paper."""

    kind: Literal["xiezhi"]
    domain: Domain
    """Domain of all questions."""
    path: Text
    """Local file or folder, or the hub id of a copy. Xiezhi itself is published on GitHub only."""
    name: str | None = None
    """Configuration of the hub dataset, if it has several."""
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """Labels that select rows: a row is used if it has any of them. Default: all rows."""
    collection: Collection = "pool"
    """`pool`: questions to train on. `benchmark`: questions for evaluation only."""
    splits: Splits | None = None
    """The dataset's splits for dev, train and test. Default: a draw with `questions.seed` of 10 dev
    and 250 test questions; the rest is train."""


class SubjectSource(SubjectLimit, TestGroup):
    """CMMLU or C-Eval as a benchmark: one file per subject with the columns A, B, C, D and a
    letter."""

    kind: Literal["cmmlu", "ceval"]
    path: Text | None = None
    """Hub id, or the folder of the unpacked archive. Default: the dataset's own hub id."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """Subjects to use. Default: all."""
    domains: dict[str, Domain] = {}
    """Domains of subjects that differ from the built-in assignment."""
    collection: Collection = "benchmark"
    """`pool`: questions to train on. `benchmark`: questions for evaluation only."""
    splits: Splits | None = None
    """The dataset's splits for dev, train and test."""


class EntityQuestionsSource(SubjectLimit, TestGroup):
    """EntityQuestions: free questions, one JSON file per relation and split. Relations are used as
    subjects."""

    kind: Literal["entity_questions"]
    path: Text
    """The folder `dataset` of the unpacked archive; the authors publish no hub dataset."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """Relations to use, such as P36. Default: all."""
    domain: Domain = "entity_questions"
    """Domain of all questions."""
    collection: Collection = "benchmark"
    """`pool`: questions that sets of free questions can use. `benchmark`: questions for evaluation
    only. In either case a run needs a pool of choice questions as well."""
    splits: Splits | None = None
    """The dataset's splits for dev, train and test."""


class DatasetSource(PoolLimits, TestGroup):
    """A published dataset with known columns; docs/questions.md lists the defaults of each."""

    kind: Literal["medmcqa", "medqa", "arc", "truthfulqa", "popqa"]
    path: Text | None = None
    """Hub id, local folder, or a .json, .jsonl, .csv, .tsv or .parquet file. Default: the dataset's
    own hub id."""
    name: str | None = None
    """Configuration of the dataset, if it has several."""
    domain: Domain | None = None
    """Domain of all questions. Default: the dataset's own."""
    collection: Collection | None = None
    """`pool`: questions to train on. `benchmark`: questions for evaluation only. Default: the
    dataset's usual role."""
    splits: Splits | None = None
    """The dataset's splits for dev, train and test; slices such as `validation[:10]` are
    allowed."""


AnswerForm = Literal["auto", "letter", "index_from_0", "index_from_1", "text"]


class HubFields(Section):
    """Columns of a dataset. A dot denotes a nested column, such as `choices.text`."""

    question: str = "question"
    """Column with the question's text."""
    choices: str | Annotated[list[str], Field(min_length=2)] = "choices"
    """Column with the list of options, or a list of columns with one option each, such as
    [A, B, C, D]."""
    answer: str = "answer"
    """Column with the right option, in the form given by `answer_form`."""
    answer_form: AnswerForm = "auto"
    """Form of `answer`: a letter, an index from 0 or from 1, or the option's text. `auto` accepts a
    letter, an index from 0 or a text, and rejects values that could mean two options."""
    aliases: str | None = None
    """Column with the list of right answers. If set, the questions are free ones, and `choices` and
    `answer` are ignored."""
    id: str | None = None
    """Column with the question's id. Default: an id made from the row's number."""
    subject: str | None = None
    """Column with the question's subject. Default: none."""
    explanation: str | None = None
    """Column with an explanation of the right answer. Default: none."""


class HubSource(PoolLimits, TestGroup):
    """Any Hugging Face dataset."""

    kind: Literal["huggingface"]
    path: str
    """Hub id or local path."""
    name: str | None = None
    """Configuration of the dataset, if it has several."""
    domain: Domain
    """Domain of all questions."""
    collection: Collection = "pool"
    """`pool`: questions to train on. `benchmark`: questions for evaluation only."""
    splits: Splits
    """The dataset's splits for dev, train and test."""
    fields: HubFields = HubFields()


Source = Annotated[
    WorldSource
    | FactsSource
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
    """Search for questions that occur more than once: in training and evaluation, or in several
    domains. Duplicates are always counted; `remove` leaves them out."""

    near: bool = True
    """Also search for questions that are similar but not equal. Exact duplicates cost almost
    nothing and are always searched for."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Minimum similarity of two questions: the Jaccard index of their sets of three-word shingles,
    options included."""
    num_permutations: Annotated[int, Field(ge=16)] = 128
    """Length of the MinHash signatures. Longer ones propose fewer wrong candidates and use more
    memory."""
    remove: Removed | Annotated[list[Removed], Field(min_length=1)] = "none"
    """Questions to leave out, one value or several. `none`: nothing, as in the paper. `train` or
    `held_out`: that side of every pair of a train and a held-out question. `demonstrated`: test
    questions that are also demonstrations. `equal_options`: train and test questions with an option
    equal to the right one. Demonstrations are always kept."""

    @model_validator(mode="after")
    def _check_remove(self) -> "AuditConfig":
        removed = self.removed
        if isinstance(self.remove, list) and ("none" in removed or len(removed) < len(self.remove)):
            raise ValueError(
                "remove: a list may contain train, held_out, demonstrated and equal_options, each "
                "at most once"
            )
        if {"train", "held_out"} <= removed:
            raise ValueError(
                "remove: train and held_out are the two sides of the same pairs; choose one of them"
            )
        return self

    @property
    def removed(self) -> set[str]:
        """The values of `remove` as a set."""
        return set(self.remove) if isinstance(self.remove, list) else {self.remove}


class QuestionsConfig(Section):
    """Sources of the questions, and their checks."""

    sources: list[Source] = [WorldSource(kind="world")]
    """Pools and benchmarks; docs/questions.md describes every kind. At least one must be a pool,
    unless only sets of one's own instructions are trained."""
    seed: Seed = 42
    """Seed of the draws that limits and missing splits require."""
    audit: AuditConfig = AuditConfig()


def collection_of(source: Source) -> Collection:
    """Returns the source's role. Datasets without a train split or with free questions only are
    benchmarks by default."""
    chosen: Collection | None = getattr(source, "collection", None)
    return chosen or ("benchmark" if source.kind in ("mmlu", "truthfulqa", "popqa") else "pool")


def group_of_source(source: Source) -> str | None:
    """Returns the name of the source's own test group, or None."""
    return getattr(source, "group", None)


def is_pool(source: Source) -> bool:
    """True if arms can be trained on the source's choice questions."""
    is_free = source.kind in ("popqa", "entity_questions") or (
        isinstance(source, HubSource) and source.fields.aliases is not None
    )
    no_pool = isinstance(source, FactsSource) and source.domains == ["aviation"]
    return collection_of(source) == "pool" and not is_free and not no_pool


def source_problems(questions: QuestionsConfig, needs_pool: bool) -> list[str]:
    """Returns one message per impossible setting of the sources."""
    problems = [
        f"questions.sources.{number}.group: a pool's test group is always HOMO; remove it, or set "
        "collection to benchmark"
        for number, source in enumerate(questions.sources)
        if group_of_source(source) is not None and collection_of(source) == "pool"
    ]
    if needs_pool and not any(is_pool(source) for source in questions.sources):
        problems.append(
            "questions.sources: none of them is a pool to train on; add one, such as a world, "
            "paper or huggingface source"
        )
    return problems
