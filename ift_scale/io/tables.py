"""Streams rows of local files, each with its place: JSON, CSV, TSV and Parquet, also gzipped.

Every value of a CSV file is a text, so an option `1.50`, `NA` or `None` is unchanged. Each pass
reads the files again, so memory grows with neither the file nor the number of passes.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from ift_scale.errors import DataError, OnError, Place, stop_at
from ift_scale.io import jsonl, text_file
from ift_scale.io.jsonl import Row

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_EXECUTED = ("=", "+", "-", "@", "\t", "\r")
_PARQUET_ROWS = 1024
# A text may be long, but an unclosed quotation mark reaches further.
_MOST_CHARACTERS = 1 << 20


def write_csv(table: Any, path: Path) -> None:
    """Writes a pandas table that a spreadsheet can open safely.

    A spreadsheet executes texts that begin with =, +, - or @ (`=HYPERLINK(...)` in a subject's
    name). They get an apostrophe in front, which it does not show. Numbers are unchanged.
    """
    texts = table.select_dtypes(exclude=["number", "bool"]).columns
    inert = table.assign(**{name: table[name].map(_inert) for name in texts})
    inert.rename(columns=_inert).to_csv(path, index=False)


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_EXECUTED) else cell


class RowTable(Protocol):
    """Rows that can be read repeatedly. `features`: the columns' types in `datasets`, if known."""

    @property
    def features(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[Place, Row]]:
        """Yields the rows of these numbers, from 0.

        Ascending numbers are streamed; for any other order the rows are kept in memory.
        """

    def stream(self, on_error: OnError = stop_at) -> Iterator[tuple[Place, Row]]:
        """Yields all rows in order. Calls `on_error` for a row that cannot be read."""


@dataclass
class FileTable:
    """One split in one or more files of one type."""

    files: Sequence[Path]
    declared: Mapping[str, Any] = field(default_factory=dict)
    """The column types that README.md declares."""

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

    def stream(self, on_error: OnError = stop_at) -> Iterator[tuple[Place, Row]]:
        return (
            (Place(file, line), row) for file in self.files for line, row in records(file, on_error)
        )

    def _ascending(self, numbers: Sequence[int]) -> Iterator[tuple[Place, Row]]:
        remaining = iter(numbers)
        following = next(remaining, None)
        for number, (place, row) in enumerate(self.stream()):
            if following is None:
                return
            if number == following:
                yield place, row
                following = next(remaining, None)


@dataclass(frozen=True)
class DatasetTable:
    """One split of a dataset loaded by `datasets`; a row's line is its number from 1."""

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

    def stream(self, on_error: OnError = stop_at) -> Iterator[tuple[Place, Row]]:
        return ((Place(self.name, number), row) for number, row in enumerate(self.dataset, start=1))


def suffix(path: Path) -> str:
    """Returns a file's type by its name, ignoring `.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def records(path: Path, on_error: OnError = stop_at) -> Iterator[tuple[int, Row]]:
    """Yields (line, row) of a file, lines from 1; for Parquet the row's number.

    Raises DataError for any problem with the file, and calls `on_error` for one of a single row.
    """
    kind = suffix(path)
    if kind in _DELIMITERS:
        return _csv_records(path, on_error)
    return _parquet_records(path) if kind == ".parquet" else jsonl.rows(path, on_error)


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (first line, columns) of each non-empty row; line ends inside quotes become "\\n"."""
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=_DELIMITERS[suffix(path)])
    begins, limit = 1, csv.field_size_limit(_MOST_CHARACTERS)
    try:
        for row in reader:
            if lines.ended:  # the reader asked for another line to close a quotation
                raise DataError(
                    Place(path, begins),
                    "a quotation mark is not closed",
                    "Close it, or double it inside a text",
                )
            if row:
                yield begins, [value.replace("\r\n", "\n") for value in row]
            begins = reader.line_num + 1
    except csv.Error as error:
        remedy = "Fix or remove the row; double a quotation mark inside a quoted text"
        raise DataError(Place(path, begins), f"not valid CSV: {error}", remedy) from error
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """A file's lines for csv.reader; `ended` is true once it asked for a line after the last."""

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


def _csv_records(path: Path, on_error: OnError) -> Iterator[tuple[int, Row]]:
    """Yields (line, row) of a CSV file whose first row is the header."""
    lines = csv_lines(path)
    line, header = next(lines, (1, []))
    # pandas writes its index as a column without a name and reads such a column under this name.
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(header)]
    _refuse_repeated(Place(path, line), names)
    for number, row in lines:
        if len(row) != len(names):
            problem = f"has {len(row)} columns, the header has {len(names)} ({', '.join(names)})"
            remedy = (
                "Fix or remove the row; put a text that contains the separator in quotation marks"
            )
            on_error(DataError(Place(path, number), problem, remedy, row))
            continue
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
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            Place(path, number or None), f"is damaged: {error}", "Fetch the file again"
        ) from error


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    text_file.refuse_unreadable(path)
    try:
        with path.open("rb") as file:
            text_file.refuse_pointer_or_archive(path, file.read(64))
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            Place(path), f"cannot be read as Parquet: {error}", "Fetch the file again"
        ) from error
    _refuse_repeated(Place(path), file.schema_arrow.names)
    return file


def _parquet_features(path: Path) -> Mapping[str, Any]:
    """Returns the types that `datasets` stored with the columns; classes get names from them."""
    schema = _parquet(path).schema_arrow
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        remedy = "Write the file again with a current version of datasets"
        raise DataError(
            Place(path), f"cannot read the column types stored with it: {error}", remedy
        ) from error


def _count(path: Path) -> int:
    """Returns the number of a file's rows."""
    kind = suffix(path)
    if kind in _DELIMITERS:
        return max(0, sum(1 for _ in csv_lines(path)) - 1)
    return _parquet(path).metadata.num_rows if kind == ".parquet" else jsonl.count(path)
