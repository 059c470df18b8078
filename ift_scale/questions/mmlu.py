"""MMLU as a benchmark: its subjects belong to the paper's domains by sub-category (data/mmlu_subcategories.json).

Two layouts are read, found by what the folder holds:
- Hendrycks' CSV: dev/abstract_algebra_dev.csv, test/abstract_algebra_test.csv, rows of question, A, B, C, D, letter;
- JSON lines: dev.jsonl and test.jsonl (.gz too), for example
    {"id": "abstract_algebra/0", "subject": "abstract_algebra", "question": "Find the degree ...",
     "choices": ["0", "4", "2", "6"], "answer": 1}
"""

import csv
import json
import random
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ift_scale import jsonl
from ift_scale.config import MmluSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.questions.checks import UniqueIds, choice_question
from ift_scale.records import Question, Split

OTHER_DOMAIN = "other"


@lru_cache(maxsize=1)
def subcategories() -> dict[str, Any]:
    """`subjects`: MMLU subject -> sub-category; `domains`: the paper's domain -> its sub-categories."""
    return json.loads((resources.files("ift_scale.questions") / "mmlu_subcategories.json").read_text(encoding="utf-8"))


def domain_of(subject: str) -> str:
    """The paper's domain that an MMLU subject belongs to, or `other`. KeyError for a subject that MMLU lacks."""
    category = subcategories()["subjects"][subject]
    domains = subcategories()["domains"]
    return next((domain for domain, categories in domains.items() if category in categories), OTHER_DOMAIN)


def load(source: MmluSource, seed: int) -> list[Question]:
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(Place(folder), "no such folder", "Set questions.sources.*.path to the MMLU folder")
    questions = []
    splits: tuple[Split, ...] = ("dev", "test")
    for split in splits:
        rows = _csv_rows(folder / split, split) if (folder / split).is_dir() else _jsonl_rows(jsonl.find(folder, split))
        questions += _questions(rows, split)
    return _limited(questions, source.max_per_subject, seed)


def _jsonl_rows(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    for number, row in jsonl.rows(path):
        yield Place(path, number), row


def _csv_rows(folder: Path, split: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    files = sorted(folder.glob(f"*_{split}.csv"))
    if not files:
        raise DataError(Place(folder), f"no file *_{split}.csv", "Unpack MMLU's data.tar and set the path to its data folder")
    for path in files:
        subject = path.name.removesuffix(f"_{split}.csv")
        for line, index, row in _csv_lines(path):
            place = Place(path, line)
            if len(row) != 6:
                raise DataError(place, "has not the 6 columns question, A, B, C, D, answer", "Mend or remove the row", row)
            yield (
                place,
                {
                    "id": f"{subject}/{index}",
                    "subject": subject,
                    "question": row[0],
                    "choices": row[1:5],
                    "answer": row[5],
                },
            )


def _csv_lines(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """(line number, row number from 0, columns)."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            for index, row in enumerate(reader):
                yield reader.line_num, index, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(Place(path, reader.line_num + 1), f"cannot be read: {error}", "It must be CSV in UTF-8") from error


def _questions(rows: Iterator[tuple[Place, dict[str, Any]]], split: Split) -> list[Question]:
    unique = UniqueIds()
    questions = []
    for place, row in rows:
        subject = str(row.get("subject"))
        if subject not in subcategories()["subjects"]:
            known = subcategories()["subjects"]
            remedy = "MMLU subjects only; " + did_you_mean(subject, known)
            raise DataError(Place(place.file, place.line, "subject"), "unknown subject", remedy, subject)
        id = f"mmlu/{split}/{row.get('id')}"
        unique.check(place, id)
        domain = domain_of(subject)
        questions.append(choice_question(place, row, id=id, domain=domain, subject=subject, collection="benchmark", split=split))
    return questions


def _limited(questions: list[Question], max_per_subject: int | None, seed: int) -> list[Question]:
    """At most `max_per_subject` test questions of each subject; all of dev."""
    if max_per_subject is None:
        return questions
    by_subject: dict[str, list[str]] = {}
    for question in questions:
        if question.split == "test":
            by_subject.setdefault(question.subject, []).append(question.id)
    kept = set()
    for subject, ids in by_subject.items():
        kept.update(random.Random(f"{seed}/{subject}").sample(ids, min(max_per_subject, len(ids))))
    return [question for question in questions if question.split == "dev" or question.id in kept]
