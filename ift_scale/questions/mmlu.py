"""MMLU as a benchmark: its subjects belong to the paper's domains by sub-category (data/mmlu_subcategories.json).

Three layouts of a local folder are read, found by what it holds, and the hub's dataset (cais/mmlu), by its id:
- Hendrycks' CSV: dev/abstract_algebra_dev.csv, test/abstract_algebra_test.csv (or all files in one folder), rows of
  question, A, B, C, D, letter;
- JSON lines: dev.jsonl and test.jsonl (.gz too), for example
    {"id": "abstract_algebra/0", "subject": "abstract_algebra", "question": "Find the degree ...",
     "choices": ["0", "4", "2", "6"], "answer": 1}
- a copy of the hub's dataset: all/test-00000-of-00001.parquet, or only folders of subjects, such as abstract_algebra/;
  rows as above without an id.
Rows without an id get one made of their content (questions.sampling).
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ift_scale import draws
from ift_scale.config import MmluSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io import jsonl
from ift_scale.questions import sampling
from ift_scale.questions.answers import option
from ift_scale.questions.checks import Row, choice_question, columns_of_options
from ift_scale.questions.classes import refuse_from_1
from ift_scale.questions.known import Placed
from ift_scale.questions.reading import Opened, named_section, open_dataset
from ift_scale.questions.tables import csv_lines
from ift_scale.records import Split

OTHER_DOMAIN = "other"
USED_SPLITS: tuple[Split, ...] = ("dev", "test")
Rows = Iterator[tuple[Place, Row]]
_COLUMNS = ("question", "A", "B", "C", "D", "answer")


@lru_cache(maxsize=1)
def subcategories() -> dict[str, Any]:
    """`subjects`: MMLU subject -> sub-category; `domains`: the paper's domain -> its sub-categories."""
    return json.loads(
        (resources.files("ift_scale.questions") / "mmlu_subcategories.json").read_text(
            encoding="utf-8"
        )
    )


def domain_of(subject: str) -> str:
    """The paper's domain that an MMLU subject belongs to, or `other`. KeyError for a subject that MMLU lacks."""
    category = subcategories()["subjects"][subject]
    domains = subcategories()["domains"]
    return next(
        (domain for domain, categories in domains.items() if category in categories), OTHER_DOMAIN
    )


def load(source: MmluSource, seed: int) -> Iterator[Placed]:
    """Row by row; at most `max_per_subject` test questions of each subject, for which test is read twice; all of dev."""
    folder, opened = _open(source)
    for split in USED_SPLITS:
        chosen: dict[str, set[int]] | None = None
        if split == "test" and source.max_per_subject is not None:
            ids: dict[str, list[str]] = {}
            for _, row in _rows(folder, opened, split):
                ids.setdefault(str(row.get("subject")), []).append(sampling.id_of(row))
            chosen = {
                s: sampling.lowest(found, source.max_per_subject, f"{seed}/{s}")
                for s, found in ids.items()
            }
        seen: Counter[str] = Counter()
        for place, question in _questions(_rows(folder, opened, split), split):
            if chosen is None or seen[question.subject] in chosen[question.subject]:
                yield place, question
            seen[question.subject] += 1
        if split == "test" and not seen:
            raise DataError(
                Place(source.path),
                "has no test question",
                "Fetch the files again, or remove the source",
            )


def _rows(folder: Path, opened: Opened | None, split: Split) -> Rows:
    if opened is not None:
        return _opened_rows(opened, split)
    if (parts := _parts(folder, split)) is not None:
        return _csv_rows(parts, split)
    if not jsonl.exists(folder, split) and (subjects := _subject_folders(folder)):
        return _folder_rows(subjects, split)
    return _jsonl_rows(jsonl.find(folder, split))


def _parts(folder: Path, split: Split) -> Path | None:
    """The folder with a split's CSV files: Hendrycks' sub-folder, or the folder itself if all splits are in one."""
    if any((folder / split).glob("*.csv")):
        return folder / split
    subjects = (path.name.removesuffix(f"_{split}.csv") for path in folder.glob(f"*_{split}.csv"))
    return folder if any(subject in subcategories()["subjects"] for subject in subjects) else None


def _open(source: MmluSource) -> tuple[Path, Opened | None]:
    """The folder of files to read, and the dataset if it is a hub id, a copy of the hub's or a file."""
    folder = Path(source.path)
    if not folder.is_dir():
        return folder, open_dataset(source.path, source.name)
    folder = folder / "data" if _parts(folder / "data", "test") else folder
    if _parts(folder, "test") or jsonl.exists(folder, "test"):
        return folder, None
    if (
        (folder / source.name).is_dir()
        or (folder / "README.md").is_file()
        or not _subject_folders(folder)
    ):
        return folder, open_dataset(source.path, source.name, name_required=False)
    return folder, None


def _subject_folders(folder: Path) -> list[Path]:
    """The folders of single subjects, as a copy of the hub's dataset has them beside `all`."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name in subcategories()["subjects"] and path.is_dir()
    )


def _folder_rows(subjects: list[Path], split: Split) -> Rows:
    for folder in subjects:
        for place, row in _opened_rows(open_dataset(str(folder)), split):
            yield place, {"subject": folder.name, **row}


def _opened_rows(opened: Opened, split: Split) -> Rows:
    section = named_section(opened, split, split)
    refuse_from_1(opened.path, section.table.features, "answer")
    return ((place, row) for _, place, row in section.rows())


def _jsonl_rows(path: Path) -> Rows:
    for number, row in jsonl.rows(path):
        yield Place(path, number), row


def _csv_rows(folder: Path, split: str) -> Rows:
    files = sorted(folder.glob(f"*_{split}.csv"))
    if not files:
        raise DataError(
            Place(folder),
            f"no file *_{split}.csv",
            "Unpack MMLU's data.tar and set the path to its data folder",
        )
    for path in files:
        subject = path.name.removesuffix(f"_{split}.csv")
        for line, row in csv_lines(path):
            yield Place(path, line), _csv_row(Place(path, line), row) | {"subject": subject}


def _csv_row(place: Place, row: list[str]) -> Row:
    if len(row) != len(_COLUMNS):
        raise DataError(
            place, f"must have the 6 columns {', '.join(_COLUMNS)}", "Fix or remove the row", row
        )
    named = dict(zip(_COLUMNS, row, strict=True))
    choices = columns_of_options(place, named, "ABCD")
    answer = option(Place(place.file, place.line, "answer"), named["answer"], choices, "letter")
    return {"question": named["question"], "choices": choices, "answer": answer}


def _questions(rows: Rows, split: Split) -> Iterator[Placed]:
    known, unique = subcategories()["subjects"], draws.Unique()
    for place, row in rows:
        subject = row.get("subject")
        if not isinstance(subject, str) or subject not in known:
            problem, remedy = (
                "missing" if subject is None else "unknown subject",
                "MMLU subjects only; ",
            )
            raise DataError(
                Place(place.file, place.line, "subject"),
                problem,
                remedy + did_you_mean(str(subject), known),
                subject,
            )
        within = "" if row.get("id") is not None else f"{subject}/"
        id, domain = (
            f"mmlu/{split}/{within}{sampling.unique_id(place, row, unique)}",
            domain_of(subject),
        )
        yield (
            place,
            choice_question(
                place,
                row,
                id=id,
                domain=domain,
                subject=subject,
                collection="benchmark",
                split=split,
            ),
        )
