"""All kinds of question sources: how each is read, and the digest of its files."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ift_scale.config import (
    Config,
    DatasetSource,
    EntityQuestionsSource,
    HubSource,
    MmluSource,
    PaperSource,
    Source,
    SubjectSource,
    XiezhiSource,
    group_of_source,
)
from ift_scale.errors import Place
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.questions import (
    arc,
    ceval,
    cmmlu,
    entity_questions,
    folders,
    hub,
    known,
    medmcqa,
    medqa,
    mmlu,
    paper,
    popqa,
    subjects,
    truthfulqa,
    world,
    xiezhi,
)
from ift_scale.questions.known import Known, Placed
from ift_scale.questions.subjects import Parts
from ift_scale.records import Question

DATASETS: dict[str, Known] = {
    "arc": arc.DATASET,
    "medmcqa": medmcqa.DATASET,
    "medqa": medqa.DATASET,
    "popqa": popqa.DATASET,
    "truthfulqa": truthfulqa.DATASET,
}
IN_PARTS: dict[str, Parts] = {
    "ceval": ceval.PARTS,
    "cmmlu": cmmlu.PARTS,
    "entity_questions": entity_questions.PARTS,
}


def load_source(
    source: Source, seed: int, left_out: Counter[str] | None = None, with_train: bool = True
) -> Iterator[Placed]:
    """Each question of a source with its place; `left_out` counts rows that a source's own rule leaves out, by reason.

    Without `with_train`, a pool of the paper need not have a train file.
    """
    match source:
        case PaperSource():
            return paper.load(source, seed, with_train)
        case MmluSource():
            return mmlu.load(source, seed)
        case HubSource():
            return hub.load(source, seed)
        case XiezhiSource():
            return xiezhi.load(source, seed, Counter() if left_out is None else left_out)
        case SubjectSource() | EntityQuestionsSource():
            return subjects.load(source, IN_PARTS[source.kind], seed)
        case DatasetSource():
            return known.load(source, DATASETS[source.kind], seed)
        case _:
            return ((Place("world"), question) for question in world.load())


def input_digests(config: Config) -> dict[str, str]:
    """Digest of each source's files, so that changed data is noticed; a hub dataset by name counts by its name."""
    digests = {}
    for number, source in enumerate(config.questions.sources):
        path = getattr(source, "path", None)
        if path is not None and Path(path).exists():
            root = Path(path)
            # Hidden files (.git, a download's .cache) change without the data.
            inside = (p for p in root.rglob("*") if p.is_file() and not folders.is_hidden(p, root))
            files = sorted(inside) if root.is_dir() else [root]
            digests[f"source{number}"] = digest_of({str(p): file_digest(p) for p in files})
    return digests


def placed(
    config: Config, left_out: Counter[str] | None = None
) -> Iterator[tuple[int, Place, Question]]:
    """Every source's questions, each with the source's number and its place there."""
    with_train = (
        config.construct.official is None
    )  # the authors' sets bring their own train questions
    for number, source in enumerate(config.questions.sources):
        group = group_of_source(source)
        for place, question in load_source(source, config.questions.seed, left_out, with_train):
            yield (
                number,
                place,
                question if group is None else question.model_copy(update={"group": group}),
            )
