"""MMLU as a benchmark. mmlu_subcategories.json maps its subjects to the paper's domains.

Three layouts of a local folder are recognised by their files, and the hub's dataset (cais/mmlu) by
its id:
- Hendrycks' CSV: dev/abstract_algebra_dev.csv, test/abstract_algebra_test.csv (or all files in one
  folder) with rows of question, A, B, C, D, letter;
- JSON lines: dev.jsonl and test.jsonl (or .gz), for example
    {"id": "abstract_algebra/0", "subject": "abstract_algebra", "question": "Find the degree ...",
     "choices": ["0", "4", "2", "6"], "answer": 1}
- a copy of the hub's dataset: all/test-00000-of-00001.parquet, or only one folder per subject, such
  as abstract_algebra/, with rows as above without an id.
Rows without an id get one derived from their content (questions.sampling).
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ift_scale import draws
from ift_scale.config.questions import MmluSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io import jsonl
from ift_scale.io.dataset import Opened, open_dataset
from ift_scale.io.jsonl import Row
from ift_scale.io.tables import csv_lines
from ift_scale.questions import sampling
from ift_scale.questions.answers import option_index
from ift_scale.questions.checks import choice_question, columns_of_options
from ift_scale.questions.classes import refuse_one_based_classes
from ift_scale.questions.published import Placed
from ift_scale.questions.reading import select_split, with_rows
from ift_scale.records import Split

OTHER_DOMAIN = "other"
USED_SPLITS: tuple[Split, ...] = ("dev", "test")
Rows = Iterator[tuple[Place, Row]]
_COLUMNS = ("question", "A", "B", "C", "D", "answer")


@lru_cache(maxsize=1)
def subcategories() -> dict[str, Any]:
    """Returns `subjects` (subject -> sub-category) and `domains` (domain -> sub-categories)."""
    return json.loads(
        (resources.files("ift_scale.questions") / "mmlu_subcategories.json").read_text(
            encoding="utf-8"
        )
    )


def domain_of(subject: str) -> str:
    """Returns the paper's domain of an MMLU subject, or `other`; KeyError if MMLU lacks it."""
    category = subcategories()["subjects"][subject]
    domains = subcategories()["domains"]
    return next(
        (domain for domain, categories in domains.items() if category in categories), OTHER_DOMAIN
    )


def load(source: MmluSource, seed: int) -> Iterator[Placed]:
    """Yields questions row by row: all of dev, and of test at most `max_per_subject` per subject.

    With this limit, test is read twice.
    """
    folder, opened = _open(source)
    for split in USED_SPLITS:
        chosen: dict[str, set[int]] | None = None
        if split == "test" and source.max_per_subject is not None:
            ids: dict[str, list[str]] = {}
            for _, row in _rows(folder, opened, split):
                ids.setdefault(str(row.get("subject")), []).append(sampling.id_of(row))
            chosen = {
                s: sampling.lowest(own_ids, source.max_per_subject, f"{seed}/{s}")
                for s, own_ids in ids.items()
            }
        seen: Counter[str] = Counter()
        for place, question in _questions(_rows(folder, opened, split), split):
            if chosen is None or seen[question.subject] in chosen[question.subject]:
                yield place, question
            seen[question.subject] += 1


def _rows(folder: Path, opened: Opened | None, split: Split) -> Rows:
    """Returns a split's rows from whichever layout the folder has."""
    if opened is not None:
        return _opened_rows(opened, split)
    if (parts := _parts(folder, split)) is not None:
        return _csv_rows(parts, split)
    if not jsonl.exists(folder, split) and (subjects := _subject_folders(folder)):
        return _folder_rows(subjects, split)
    return _jsonl_rows(jsonl.find(folder, split))


def _parts(folder: Path, split: Split) -> Path | None:
    """Returns the folder of a split's CSV files: a sub-folder, or the folder with all splits."""
    if any((folder / split).glob("*.csv")):
        return folder / split
    subjects = (path.name.removesuffix(f"_{split}.csv") for path in folder.glob(f"*_{split}.csv"))
    return folder if any(subject in subcategories()["subjects"] for subject in subjects) else None


def _open(source: MmluSource) -> tuple[Path, Opened | None]:
    """Returns the folder to read, and the opened dataset if it is on the hub, a copy or a file."""
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
    """Returns the folders of single subjects, which copies of the hub's dataset have."""
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
    selection = select_split(opened, split, split)
    refuse_one_based_classes(opened.path, selection.table.features, "answer")
    return ((place, row) for _, place, row in selection.rows())


def _jsonl_rows(path: Path) -> Rows:
    for number, row in with_rows(jsonl.rows(path), path):
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
        for line, row in with_rows(csv_lines(path), path):
            yield Place(path, line), _csv_row(Place(path, line), row) | {"subject": subject}


def _csv_row(place: Place, row: list[str]) -> Row:
    if len(row) != len(_COLUMNS):
        raise DataError(
            place, f"must have the 6 columns {', '.join(_COLUMNS)}", "Fix or remove the row", row
        )
    named = dict(zip(_COLUMNS, row, strict=True))
    choices = columns_of_options(place, named, "ABCD")
    answer = option_index(
        Place(place.file, place.line, "answer"), named["answer"], choices, "letter"
    )
    return {"question": named["question"], "choices": choices, "answer": answer}


def _questions(rows: Rows, split: Split) -> Iterator[Placed]:
    """Turns rows into questions; DataError for a subject that MMLU does not have."""
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
