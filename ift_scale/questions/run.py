"""The questions stage: every source of the configuration into one questions.jsonl."""

import time
from collections import Counter
from pathlib import Path

from ift_scale import artifacts
from ift_scale.config import Config, HubSource, MmluSource, PaperSource, Source
from ift_scale.errors import DataError, Place
from ift_scale.questions import hub, mmlu, paper, world
from ift_scale.records import Question

VERSION = 1
FILE = "questions.jsonl"


def load_source(source: Source, seed: int) -> list[Question]:
    match source:
        case PaperSource():
            return paper.load(source, seed)
        case MmluSource():
            return mmlu.load(source, seed)
        case HubSource():
            return hub.load(source)
        case _:
            return world.load()


def input_digests(config: Config) -> dict[str, str]:
    """Digest of each source's files, so that changed data is noticed; a hub dataset by name counts by its name."""
    digests = {}
    for number, source in enumerate(config.questions.sources):
        path = Path(getattr(source, "path", ""))
        if source.kind != "world" and path.exists():
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            digests[f"source{number}"] = artifacts.digest_of({str(p): artifacts.file_digest(p) for p in files})
    return digests


def check_pools(questions: list[Question]) -> None:
    """DataError for a pool that has no train or no test question: no arm could be made of it, or none measured."""
    found = {(q.domain, q.split) for q in questions if q.collection == "pool" and q.kind == "choice"}
    for domain in dict.fromkeys(domain for domain, _ in found):
        for split in ("train", "test"):
            if (domain, split) not in found:
                remedy = f"Give the domain's source {split} questions, or remove it"
                raise DataError(Place(f"domain '{domain}'", field="split"), f"its pool has no {split} question", remedy)


def run(config: Config, folder: Path, key: str, inputs: dict[str, str]) -> None:
    """Write FOLDER/questions.jsonl; DataError names the file, line and field of anything wrong."""
    started = time.monotonic()
    questions: list[Question] = []
    taken: dict[str, int] = {}
    for number, source in enumerate(config.questions.sources):
        for question in load_source(source, config.questions.seed):
            if question.id in taken:
                remedy = f"questions.sources.{taken[question.id]} and .{number} hold the same domain; remove one or rename it"
                raise DataError(Place("questions.sources", field="domain"), "two sources give the same id", remedy, question.id)
            taken[question.id] = number
            questions.append(question)
    check_pools(questions)
    counts: Counter[str] = Counter(f"{q.collection}/{q.split}/{q.kind}" for q in questions)
    with artifacts.atomic_folder(folder) as temporary:
        artifacts.write_jsonl(temporary / FILE, questions)
        seconds = {"total": time.monotonic() - started}
        artifacts.write_manifest(temporary, "questions", key, config.questions.model_dump(), inputs, dict(counts), seconds)
