"""Rows of local files, one by one, each with its place: JSON, CSV, TSV and Parquet, gzipped or not.

Every value of a CSV file is a text, so an option `1.50`, `NA` or `None` stays one. Files are read
again for each pass rather than kept: memory grows with neither the file nor the number of passes.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl, text_file
from ift_scale.questions.checks import Row

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET_ROWS = 1024
# Options and explanations are long at times; a quotation mark that is not closed reaches further.
_MOST_CHARACTERS = 1 << 20


class Table(Protocol):
    """Rows that can be read several times. `features`: the columns' types in `datasets`, if known."""

    @property
    def features(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[Place, Row]]:
        """The rows of these numbers, from 0; ascending numbers are streamed, others (a draw) are kept until all are read."""


@dataclass
class FileTable:
    """One split in one or more files of one type."""

    files: Sequence[Path]
    declared: Mapping[str, Any] = field(default_factory=dict)
    """The columns' types as README.md declares them."""

    @cached_property
    def features(self) -> Mapping[str, Any]:
        first = self.files[0]
        return (
            self.declared
            if self.declared or suffix(first) != ".parquet"
            else _parquet_features(first)
        )

    @cached_property
    def _size(self) -> int:
        return sum(map(_count, self.files))

    def __len__(self) -> int:
        return self._size

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[Place, Row]]:
        if all(first < second for first, second in pairwise(numbers)):
            return self._ascending(numbers)
        kept = dict(zip(sorted(numbers), self._ascending(sorted(numbers)), strict=True))
        return (kept[number] for number in numbers)

    def _ascending(self, numbers: Sequence[int]) -> Iterator[tuple[Place, Row]]:
        wanted = iter(numbers)
        following = next(wanted, None)
        everything = (
            (Place(file, line), row) for file in self.files for line, row in records(file)
        )
        for number, (place, row) in enumerate(everything):
            if following is None:
                return
            if number == following:
                yield place, row
                following = next(wanted, None)


@dataclass(frozen=True)
class DatasetTable:
    """One split of a dataset that the `datasets` library has loaded; a row's line is its number from 1."""

    name: str
    dataset: Any

    @property
    def features(self) -> Mapping[str, Any]:
        return self.dataset.features

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[Place, Row]]:
        for number, row in zip(numbers, self.dataset.select(numbers), strict=True):
            yield Place(self.name, number + 1), row


def suffix(path: Path) -> str:
    """The type of a file by its name, `.gz` aside."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def records(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of a file, lines from 1; of Parquet the row's number. DataError for anything wrong with the file."""
    kind = suffix(path)
    if kind in _DELIMITERS:
        return _csv_records(path)
    return _parquet_records(path) if kind == ".parquet" else jsonl.rows(path)


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins on, columns) of each row that is not empty. A line end inside quotation marks is "\\n"."""
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=_DELIMITERS[suffix(path)])
    begins, limit = 1, csv.field_size_limit(_MOST_CHARACTERS)
    try:
        for row in reader:
            if lines.ended:  # the reader has asked for more and made do with what there was
                raise DataError(
                    Place(path, begins),
                    "a quotation mark is not closed",
                    "Close it, or double it inside a text",
                )
            if row:
                yield begins, [value.replace("\r\n", "\n") for value in row]
            begins = reader.line_num + 1
    except csv.Error as error:
        remedy = "Fix or remove the row; a quotation mark inside a quoted text is written twice"
        raise DataError(Place(path, begins), f"not valid CSV: {error}", remedy) from error
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """A file's lines for csv.reader; `ended` once it has asked for one too many."""

    def __init__(self, path: Path):
        self._lines = text_file.lines(path, keep_line_ends=True)
        self.ended = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.ended = True
            raise StopIteration
        return line


def _csv_records(path: Path) -> Iterator[tuple[int, Row]]:
    lines = csv_lines(path)
    line, header = next(lines, (1, []))
    # pandas writes its index as a column without a name, and reads such a column as this.
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(header)]
    _refuse_repeated(Place(path, line), names)
    for number, row in lines:
        if len(row) != len(names):
            problem = f"has {len(row)} columns, the header has {len(names)} ({', '.join(names)})"
            remedy = (
                "Fix or remove the row; a text that holds the separator must be in quotation marks"
            )
            raise DataError(Place(path, number), problem, remedy, row)
        yield number, dict(zip(names, row, strict=True))


def _refuse_repeated(place: Place, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            Place(place.file, place.line, twice),
            "names two columns",
            "Rename or remove one of them",
        )


def _parquet_records(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet(path).iter_batches(_PARQUET_ROWS):
            names = batch.schema.names
            for index in range(batch.num_rows):
                number += 1
                yield number, {name: batch.column(name)[index].as_py() for name in names}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            Place(path, number or None), f"is damaged: {error}", "Fetch the file again"
        ) from error


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            text_file.refuse_pointer_or_archive(path, file.read(64))
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            Place(path), f"cannot be read as Parquet: {error}", "Fetch the file again"
        ) from error
    _refuse_repeated(Place(path), file.schema_arrow.names)
    return file


def _parquet_features(path: Path) -> Mapping[str, Any]:
    """The types that `datasets` stored with the columns; without them a class's number has no name."""
    schema = _parquet(path).schema_arrow
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        remedy = "Write the file again with a current version of datasets"
        raise DataError(
            Place(path), f"the column types stored with it cannot be read: {error}", remedy
        ) from error


def _count(path: Path) -> int:
    kind = suffix(path)
    if kind in _DELIMITERS:
        return max(0, sum(1 for _ in csv_lines(path)) - 1)
    return _parquet(path).metadata.num_rows if kind == ".parquet" else jsonl.count(path)
