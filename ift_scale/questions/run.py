"""The questions stage: every source of the configuration into one questions.jsonl.

Questions go from their source to the file one by one, and the audit reads them there. What stays in memory of a train question is
18 bytes (its id and itself as hashes, and its domain), so a pool of millions is no problem here.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from ift_scale.errors import DataError, Place
from ift_scale.io.files import atomic_folder, write_jsonl
from ift_scale.io.manifests import digest_of, file_digest, write_manifest
from ift_scale.io.progress import Bar
from ift_scale.questions import (
    arc,
    audit,
    ceval,
    cmmlu,
    duplicates,
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

VERSION = 3
FILE = "questions.jsonl"
_QUESTIONS_A_STEP = 1000

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


class Tally:
    """What is known of the questions that went by: counts, the pools' splits, hashes of the ids."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.ids = duplicates.SeenIds()
        self._pool_splits: Counter[tuple[str, str]] = Counter()

    def add(self, question: Question) -> None:
        self.counts[f"{question.collection}/{question.split}/{question.kind}"] += 1
        self.ids.add(question.id)
        if question.collection == "pool" and question.kind == "choice":
            self._pool_splits[question.domain, question.split] += 1

    def remove(self, question: Question, reason: str) -> None:
        """A question that was added and is left out of the file after all."""
        self.counts[f"{question.collection}/{question.split}/{question.kind}"] -= 1
        self.left_out[reason] += 1
        if question.collection == "pool" and question.kind == "choice":
            self._pool_splits[question.domain, question.split] -= 1

    def check_pools(self, needed: Sequence[str]) -> None:
        """DataError for a pool without questions of a needed split: no arm could be made of it, or none measured."""
        for domain in dict.fromkeys(domain for domain, _ in self._pool_splits):
            for split in needed:
                if not self._pool_splits[domain, split]:
                    remedy = f"Give the domain's source {split} questions, or remove it"
                    if (domain, split) in self._pool_splits:
                        remedy = "The audit has left out all of them: change questions.audit.remove"
                    raise DataError(
                        Place(f"domain '{domain}'", field="split"),
                        f"its pool has no {split} question",
                        remedy,
                    )


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


def counted(
    questions: Iterable[tuple[int, Place, Question]], tally: Tally, bar: Bar
) -> Iterator[Question]:
    for done, (_, _, question) in enumerate(questions, start=1):
        tally.add(question)
        if done % _QUESTIONS_A_STEP == 0:
            bar.advance(_QUESTIONS_A_STEP)
        yield question


def run(config: Config, folder: Path, key: str, inputs: dict[str, str], bar: Bar) -> None:
    """Write FOLDER/questions.jsonl; DataError names the file, line and field of anything wrong."""
    started = time.monotonic()
    tally = Tally()
    needed = ("train", "test") if config.construct.official is None else ("test",)
    with atomic_folder(folder) as temporary:
        write_jsonl(temporary / FILE, counted(placed(config, tally.left_out), tally, bar))
        repeated = tally.ids.repeated()
        if repeated:
            duplicates.refuse(
                ((number, place, question.id) for number, place, question in placed(config)),
                repeated,
            )
        tally.check_pools(needed)
        found = audit.audit(temporary / FILE, config.questions.audit, temporary)
        left_out = audit.rows_left_out(found, config.questions.audit)
        if left_out:
            audit.leave_out(temporary / FILE, left_out, tally.remove)
            tally.check_pools(needed)
        reasons = {f"left out: {reason}": count for reason, count in tally.left_out.items()}
        counts = +tally.counts | Counter(reasons) | Counter(found.counts())
        seconds = {"total": time.monotonic() - started}
        write_manifest(
            temporary,
            "questions",
            key,
            config.questions.model_dump(),
            inputs,
            dict(counts),
            seconds,
        )
