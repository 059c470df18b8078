"""All kinds of question sources: the reader of each, and the digests of their files.

The settings of each kind are in `config/questions.py`.
"""

from collections import Counter
from collections.abc import Iterator

from ift_scale.config import (
    Config,
    DatasetSource,
    EntityQuestionsSource,
    FactsSource,
    HubSource,
    MmluSource,
    PaperSource,
    Source,
    SubjectSource,
    XiezhiSource,
    group_of_source,
)
from ift_scale.errors import Place
from ift_scale.io.dataset import files_digest
from ift_scale.questions import (
    arc,
    ceval,
    cmmlu,
    entity_questions,
    facts,
    hub,
    medmcqa,
    medqa,
    mmlu,
    paper,
    popqa,
    published,
    subjects,
    truthfulqa,
    world,
    xiezhi,
)
from ift_scale.questions.published import Placed, PublishedDataset
from ift_scale.questions.subjects import PerSubjectDataset
from ift_scale.records import Question

DATASETS: dict[str, PublishedDataset] = {
    "arc": arc.DATASET,
    "medmcqa": medmcqa.DATASET,
    "medqa": medqa.DATASET,
    "popqa": popqa.DATASET,
    "truthfulqa": truthfulqa.DATASET,
}
PER_SUBJECT: dict[str, PerSubjectDataset] = {
    "ceval": ceval.DATASET,
    "cmmlu": cmmlu.DATASET,
    "entity_questions": entity_questions.DATASET,
}


def load_source(
    source: Source, seed: int, left_out: Counter[str] | None = None, with_train: bool = True
) -> Iterator[Placed]:
    """Yields each question of a source with its place.

    `left_out` counts the rows that a source's own rule excludes, by reason. If `with_train` is
    false, a pool of the paper does not need a train file.
    """
    match source:
        case FactsSource():
            return ((Place("facts"), question) for question in facts.load(source, seed))
        case PaperSource():
            return paper.load(source, seed, with_train)
        case MmluSource():
            return mmlu.load(source, seed)
        case HubSource():
            return hub.load(source, seed)
        case XiezhiSource():
            return xiezhi.load(source, seed, Counter() if left_out is None else left_out)
        case SubjectSource() | EntityQuestionsSource():
            return subjects.load(source, PER_SUBJECT[source.kind], seed)
        case DatasetSource():
            return published.load(source, DATASETS[source.kind], seed)
        case _:
            return ((Place("world"), question) for question in world.load())


def input_digests(config: Config) -> dict[str, str]:
    """Returns the digest of each local source's files; hub datasets count by name."""
    digests = {}
    for number, source in enumerate(config.questions.sources):
        path = getattr(source, "path", None)
        digest = None if path is None else files_digest(path)
        if digest is not None:
            digests[f"source{number}"] = digest
    return digests


def placed(
    config: Config, left_out: Counter[str] | None = None
) -> Iterator[tuple[int, Place, Question]]:
    """Yields (source number, place, question) for all sources."""
    # The authors' official sets bring their own train questions.
    with_train = config.construct.official is None
    for number, source in enumerate(config.questions.sources):
        group = group_of_source(source)
        for place, question in load_source(source, config.questions.seed, left_out, with_train):
            yield (
                number,
                place,
                question if group is None else question.model_copy(update={"group": group}),
            )
