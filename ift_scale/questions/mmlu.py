"""MMLU as a benchmark: its subjects belong to the paper's domains by sub-category (data/mmlu_subcategories.json).

Two layouts of a local folder are read, found by what it holds, and the hub's dataset (cais/mmlu), by its id:
- Hendrycks' CSV: dev/abstract_algebra_dev.csv, test/abstract_algebra_test.csv, rows of question, A, B, C, D, letter;
- JSON lines: dev.jsonl and test.jsonl (.gz too), for example
    {"id": "abstract_algebra/0", "subject": "abstract_algebra", "question": "Find the degree ...",
     "choices": ["0", "4", "2", "6"], "answer": 1}
- the hub's rows: the same without an id.
Rows without an id get one made of their content (questions.sampling).
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ift_scale import draws, jsonl
from ift_scale.config import MmluSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.questions import sampling
from ift_scale.questions.checks import choice_question
from ift_scale.questions.known import Placed
from ift_scale.questions.reading import Opened, named_section, open_dataset
from ift_scale.records import Split

OTHER_DOMAIN = "other"
USED_SPLITS: tuple[Split, ...] = ("dev", "test")
Rows = Iterator[tuple[Place, dict[str, Any]]]


@lru_cache(maxsize=1)
def subcategories() -> dict[str, Any]:
    """`subjects`: MMLU subject -> sub-category; `domains`: the paper's domain -> its sub-categories."""
    return json.loads((resources.files("ift_scale.questions") / "mmlu_subcategories.json").read_text(encoding="utf-8"))


def domain_of(subject: str) -> str:
    """The paper's domain that an MMLU subject belongs to, or `other`. KeyError for a subject that MMLU lacks."""
    category = subcategories()["subjects"][subject]
    domains = subcategories()["domains"]
    return next((domain for domain, categories in domains.items() if category in categories), OTHER_DOMAIN)


def load(source: MmluSource, seed: int) -> Iterator[Placed]:
    """Row by row; at most `max_per_subject` test questions of each subject, for which test is read twice; all of dev."""
    folder = Path(source.path)
    opened = None if folder.is_dir() else open_dataset(source.path, source.name)
    for split in USED_SPLITS:
        chosen: dict[str, set[int]] | None = None
        if split == "test" and source.max_per_subject is not None:
            ids: dict[str, list[str]] = {}
            for _, row in _rows(folder, opened, split):
                ids.setdefault(str(row.get("subject")), []).append(sampling.id_of(row))
            chosen = {s: sampling.lowest(found, source.max_per_subject, f"{seed}/{s}") for s, found in ids.items()}
        seen: Counter[str] = Counter()
        for place, question in _questions(_rows(folder, opened, split), split):
            if chosen is None or seen[question.subject] in chosen[question.subject]:
                yield place, question
            seen[question.subject] += 1


def _rows(folder: Path, opened: Opened | None, split: Split) -> Rows:
    if opened is not None:
        return ((place, row) for _, place, row in named_section(opened, split, split).rows())
    return _csv_rows(folder / split, split) if (folder / split).is_dir() else _jsonl_rows(jsonl.find(folder, split))


def _jsonl_rows(path: Path) -> Rows:
    for number, row in jsonl.rows(path):
        yield Place(path, number), row


def _csv_rows(folder: Path, split: str) -> Rows:
    files = sorted(folder.glob(f"*_{split}.csv"))
    if not files:
        raise DataError(Place(folder), f"no file *_{split}.csv", "Unpack MMLU's data.tar and set the path to its data folder")
    for path in files:
        subject = path.name.removesuffix(f"_{split}.csv")
        for line, row in _csv_lines(path):
            place = Place(path, line)
            if len(row) != 6:
                raise DataError(place, "has not the 6 columns question, A, B, C, D, answer", "Mend or remove the row", row)
            yield (
                place,
                {
                    "subject": subject,
                    "question": row[0],
                    "choices": row[1:5],
                    "answer": row[5],
                },
            )


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns)."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(Place(path, reader.line_num + 1), f"cannot be read: {error}", "It must be CSV in UTF-8") from error


def _questions(rows: Rows, split: Split) -> Iterator[Placed]:
    known, unique = subcategories()["subjects"], draws.Unique()
    for place, row in rows:
        subject = str(row.get("subject"))
        if subject not in known:
            remedy = "MMLU subjects only; " + did_you_mean(subject, known)
            raise DataError(Place(place.file, place.line, "subject"), "unknown subject", remedy, subject)
        within = "" if row.get("id") is not None else f"{subject}/"
        id, domain = f"mmlu/{split}/{within}{sampling.unique_id(row, unique)}", domain_of(subject)
        yield place, choice_question(place, row, id=id, domain=domain, subject=subject, collection="benchmark", split=split)
