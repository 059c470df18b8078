"""Finding out what a question source is, from a path, a hub id or the name of a published dataset.

`detect` looks at names of files and at the first rows of each split, and returns the settings of
the source as they are written into a configuration. Nothing is guessed silently: `Detected.kind`
describes what was recognised, and columns and splits of other tables are written out in full.
"""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.io.dataset import Opened, open_dataset
from ift_scale.io.jsonl import Row
from ift_scale.questions import entity_questions, mmlu
from ift_scale.questions.columns import fields_of
from ift_scale.questions.reading import SPLITS
from ift_scale.questions.sources import DATASETS, PER_SUBJECT

Settings = dict[str, Any]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MMLU_ID = "cais/mmlu"
_NAMES = {"world": "the embedded world", "mmlu": "MMLU", "medmcqa": "MedMCQA", "medqa": "MedQA"}
_NAMES |= {"arc": "ARC", "truthfulqa": "TruthfulQA", "popqa": "PopQA", "ceval": "C-Eval"}
_NAMES |= {"cmmlu": "CMMLU", "entity_questions": "EntityQuestions", "xiezhi": "Xiezhi"}
_NAMES |= {"paper": "JSON lines in the paper's format", "facts": "the built-in facts"}
_OF_COLUMNS = {
    "medmcqa": {"opa", "opb", "opc", "opd", "cop"},
    "medqa": {"question", "options", "answer_idx"},
    "arc": {"id", "question", "choices", "answerKey"},
    "truthfulqa": {"mc1_targets"},
    "popqa": {"question", "possible_answers", "prop"},
    "xiezhi": {"question", "labels", "options", "answer"},
}
"""The columns by which a published dataset is known. ARC's are all of its columns."""
_HIDDEN = (None, "", -1, "-1")
"""Values of an answer that is not published, as in the test split of many datasets."""
_POOL_TEST, _POOL_DEV, _FEWEST = 250, 10, 40
"""Of a table without splits: rows kept for test, as in the paper, and for demonstrations."""


@dataclass(frozen=True)
class Detected:
    """`settings`: of the source, as in a configuration. `kind`: what it is, in words."""

    settings: Settings
    kind: str


def detect(spec: str) -> Detected:
    """What `[DOMAIN=]SOURCE` is: the name of a published dataset, a hub id, a folder or a file.

    Raises DataError if there is nothing there, or its columns are not understood.
    """
    domain, equals, path = spec.partition("=")
    if not equals or Path(spec).exists():
        domain, path = "", spec
    settings = _by_name(path) or _by_path(path)
    kind = str(settings["kind"])
    if domain:
        if kind in ("world", "facts", "mmlu", "ceval", "cmmlu"):
            remedy = f"Leave out `{domain}=`"
            problem = f"{_NAMES[kind]} has the domains of its subjects"
            raise DataError(Place(path), problem, remedy, domain)
        settings["domain"] = domain
    elif kind in ("paper", "xiezhi", "huggingface"):
        settings["domain"] = _domain_of(path)
    order = ("kind", "domain", "path", "name")
    ordered = {key: settings[key] for key in order if key in settings} | settings
    return Detected(ordered, _NAMES.get(kind, "a table"))


def _by_name(spec: str) -> Settings | None:
    """A published dataset by the name of its kind or its hub id, unless a file has that name."""
    if Path(spec).exists():
        return None
    if spec in ("world", "facts"):
        return {"kind": spec}
    if spec in ("mmlu", _MMLU_ID):
        return {"kind": "mmlu", "path": _MMLU_ID}
    ids = {name: known.path for name, known in DATASETS.items()}
    ids |= {name: parts.path for name, parts in PER_SUBJECT.items() if parts.path}
    return next(({"kind": name} for name, hub_id in ids.items() if spec in (name, hub_id)), None)


def _by_path(path: str) -> Settings:
    local = Path(path)
    if not local.exists() and not _HUB_ID.fullmatch(path):
        remedy = "Give a folder, a file, a hub id or the name of a dataset (docs/questions.md)"
        raise DataError(Place(path), "no such file or folder", remedy)
    if local.is_dir():
        folders = (local, local / "data", local / "dataset")
        found = next((made for folder in folders if (made := _by_files(folder))), None)
        if found is not None:
            return found
    return _by_columns(path)


def _by_files(folder: Path) -> Settings | None:
    """What the names of a folder's files show: MMLU, C-Eval, CMMLU, EntityQuestions or a pool."""
    path = str(folder)
    if any(folder.glob(f"test/P*{entity_questions.DATASET.file_suffix.format(split='test')}")):
        return {"kind": "entity_questions", "path": path}
    shared = {kind: len(_subjects_in(folder, kind)) for kind in ("mmlu", "ceval", "cmmlu")}
    best = max(shared, key=lambda kind: shared[kind])  # some subjects have one name in several
    if shared[best]:
        return {"kind": best, "path": path}
    if not all(jsonl.exists(folder, split) for split in SPLITS):
        return None
    firsts = [next((row for _, row in jsonl.rows(jsonl.find(folder, s))), {}) for s in SPLITS]
    is_paper = all({"id", "question", "choices", "answer"} <= row.keys() for row in firsts)
    is_paper &= all(isinstance(row["answer"], int) for row in firsts if is_paper)
    return {"kind": "paper", "path": path} if is_paper else None


def _subjects_in(folder: Path, kind: str) -> set[str]:
    """Subjects of a benchmark that files, or folders as in a copy of the Hub's, are named after."""
    if kind == "mmlu":
        known, split, suffix = set(mmlu.subcategories()["subjects"]), "test", "_test.csv"
        files = [*folder.glob(f"*{suffix}"), *(folder / split).glob(f"*{suffix}")]
    else:
        parts = PER_SUBJECT[kind]
        assert parts.domains is not None
        known, split = set(parts.domains()), parts.splits["test"]
        suffix = parts.file_suffix.format(split=split)
        files = list((folder / split).glob(f"*{suffix}"))
    found = {file.name.removesuffix(suffix) for file in files}
    return known & (found | {inside.name for inside in folder.glob("*") if inside.is_dir()})


def _by_columns(path: str) -> Settings:
    opened, name = _opened(path)
    rows = {split: row for split in opened.splits if (row := _first_row(opened, split))}
    if not rows:
        raise DataError(Place(path), "holds no row", "Give a file or folder with questions")
    row = rows.get("train") or next(iter(rows.values()))
    kind = _kind_of(row, set(rows))
    if kind is not None:
        return {"kind": kind, "path": path}
    fields = fields_of(path, row)
    answer = fields.get("answer")
    answered = [
        s for s, first in rows.items() if answer is None or first.get(answer) not in _HIDDEN
    ]
    splits = _splits(path, opened, answered)
    settings: Settings = {"kind": "huggingface", "path": path} | ({"name": name} if name else {})
    if "train" not in splits:
        settings["collection"] = "benchmark"
    return settings | {"splits": splits, "fields": fields}


def _opened(path: str) -> tuple[Opened, str | None]:
    """The dataset, and which configuration of a folder that has several: `all` or a usual one."""
    try:
        return open_dataset(path), None
    except DataError:
        usual = ["all", *(known.name for known in DATASETS.values() if known.name)]
        name = next((name for name in usual if (Path(path) / name).is_dir()), None)
        if name is None:
            raise
        return open_dataset(path, name), name


def _first_row(opened: Opened, split: str) -> Row:
    table = opened.splits[split]
    return next((row for _, row in islice(table.rows(range(min(1, len(table)))), 1)), {})


def _kind_of(row: Row, splits: set[str]) -> str | None:
    columns = set(row)
    if {"subject", "question", "choices", "answer"} <= columns and "test" in splits:
        return "mmlu" if row["subject"] in mmlu.subcategories()["subjects"] else None
    if columns >= _OF_COLUMNS["medmcqa"] and "validation" not in splits:
        return None  # the authors' own files, whose answers count from 1
    for kind, named in _OF_COLUMNS.items():
        if columns >= named and (kind != "arc" or columns == named):
            return kind
    return None


def _splits(path: str, opened: Opened, names: list[str]) -> dict[str, str]:
    """Which of the splits with answers, or parts of the only one, serve as dev, train and test."""
    if len(names) == 1:
        (only,) = names
        return _parts_of(path, only, len(opened.splits[only]))
    train = _named(names, "train", "training", "auxiliary_train")
    validation = _named(names, "validation", "valid", "val", "eval", "evaluation")
    test = _named(names, "test", "testing")
    dev = _named(names, "dev")
    held_out = test or validation or (dev if train else None)
    if held_out is None:
        remedy = "Name the files train, validation (or dev) and test"
        raise DataError(Place(path), "has no split to test on", remedy, names)
    shown = dev if dev != held_out else None
    shown = shown or (validation if validation != held_out else None)
    if shown is not None:
        spec = shown if shown == dev else f"{shown}[:{_POOL_DEV}]"
        return {"dev": spec} | ({"train": train} if train else {}) | {"test": held_out}
    whole = train or held_out
    rest = {"train" if train else "test": f"{whole}[{_POOL_DEV}:]"}
    return {"dev": f"{whole}[:{_POOL_DEV}]"} | rest | ({"test": held_out} if train else {})


def _named(names: list[str], *wanted: str) -> str | None:
    return next((name for name in wanted if name in names), None)


def _parts_of(path: str, split: str, count: int) -> dict[str, str]:
    """Parts of a table with one split: the first rows, the middle, and the last fifth or 250."""
    if count < _FEWEST:
        remedy = f"Give at least {_FEWEST} questions, or files named dev, train and test"
        raise DataError(Place(path), f"has {count} rows, too few to train and test on", remedy)
    test = min(_POOL_TEST, count // 5)
    middle = f"{split}[{_POOL_DEV}:-{test}]"
    return {"dev": f"{split}[:{_POOL_DEV}]", "train": middle, "test": f"{split}[-{test}:]"}


def _domain_of(path: str) -> str:
    """A domain named as the folder or file is, or the last part of a hub id."""
    stem = Path(path).resolve().name if Path(path).exists() else path.rpartition("/")[2]
    stem = re.sub(r"\.(jsonl?|csv|tsv|parquet)(\.gz)?$", "", stem, flags=re.IGNORECASE)
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    if not name:
        raise DataError(Place(path), "gives no name for a domain", f"Write NAME={path}")
    return name
