"""Rows of a dataset through the `datasets` library: from here on a hub id, a local folder and one local file are the same.

`datasets` keeps the rows in memory-mapped files, and they are handed on one by one: memory does not grow with the dataset.
"""

import csv
import gzip
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.questions.checks import Row
from ift_scale.records import Split

SPLITS: tuple[Split, ...] = ("dev", "train", "test")
_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
# `datasets` would name it so too.
FILE_SPLIT = "train"


@dataclass(frozen=True)
class Opened:
    """A loaded dataset, its splits by name, and what it is called in messages."""

    path: str
    splits: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Some rows of one split, by number."""

    name: str
    table: Any
    numbers: Sequence[int]

    def rows(self) -> Iterator[tuple[int, Place, Row]]:
        """Each row's number from 0, its place (`path[split]`, number from 1) and its columns."""
        for number, row in zip(self.numbers, self.table.select(self.numbers), strict=True):
            yield number, Place(self.name, number + 1), row

    def at(self, positions: Sequence[int]) -> "Section":
        """The rows at these positions of the section."""
        return Section(self.name, self.table, array("q", (self.numbers[position] for position in positions)))


def open_dataset(path: str, name: str | None = None, **options: Any) -> Opened:
    """A hub id or a local folder, or one local file, which has the one split `train`; DataError when it cannot be had."""
    if Path(path).is_file():
        return open_files(path, {FILE_SPLIT: Path(path)})
    return _load(path, path, name, **options)


def open_files(path: str, files: dict[str, Path]) -> Opened:
    """Local files of one type, a split each; columns of CSV are all text, so that an option `1.50` or `None` stays one."""
    first = next(iter(files.values()))
    suffix = first.with_suffix("").suffix if first.suffix == ".gz" else first.suffix
    if suffix not in _BUILDERS:
        raise DataError(Place(first), "of an unknown type", f"Known: {', '.join(_BUILDERS)}, each with .gz too")
    options: dict[str, Any] = {"data_files": {split: str(file) for split, file in files.items()}}
    if _BUILDERS[suffix] == "csv":
        options |= _text_columns(first, "\t" if suffix == ".tsv" else ",")
    return _load(path, _BUILDERS[suffix], None, **options)


def named_section(opened: Opened, split: Split, spec: str) -> Section:
    """The rows that `spec`, such as `validation` or `validation[10:]`, names; DataError tells which setting to change."""
    import datasets

    name = spec.split("[")[0]
    if name not in opened.splits:
        raise DataError(
            Place(opened.path), f"has no split '{name}'", f"Set splits.{split}: {did_you_mean(name, map(str, opened.splits))}"
        )
    table = opened.splits[name]
    try:
        (found,) = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(table)})
    except (ValueError, AssertionError) as error:
        remedy = f"Set splits.{split} to a split or one slice of it, such as {name}[:10]"
        raise DataError(Place(opened.path), f"cannot take '{spec}': {error}", remedy) from error
    return Section(f"{opened.path}[{name}]", table, range(found.from_, found.to))


def _load(path: str, builder: str, name: str | None, **options: Any) -> Opened:
    import datasets

    try:
        return Opened(path, datasets.load_dataset(builder, name, **options))
    except Exception as error:  # datasets raises many unrelated types for a dataset that cannot be had
        where = "" if Path(path).exists() else "no such file or folder here, and "
        remedy = "Check the name, or download it where there is a network and give the local path"
        raise DataError(Place(path), f"{where}datasets cannot load it: {error.__cause__ or error}", remedy) from error


def _text_columns(file: Path, separator: str) -> dict[str, Any]:
    """Options of `load_dataset` for CSV as it stands in the file."""
    import datasets

    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
            header = next(csv.reader(lines, delimiter=separator), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(Place(file, 1), f"cannot be read: {error}", "It must be CSV in UTF-8") from error
    # pandas, which reads for datasets, gives a column without a name this one.
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return {"features": features, "sep": separator, "keep_default_na": False}
