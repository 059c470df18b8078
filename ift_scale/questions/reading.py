"""Selects the rows of a dataset that become questions: one split or a slice of it."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ift_scale.errors import DataError, Place
from ift_scale.io.dataset import Opened, part_of
from ift_scale.io.jsonl import Row
from ift_scale.io.tables import RowTable
from ift_scale.questions import classes
from ift_scale.records import Split

T = TypeVar("T")
SPLITS: tuple[Split, ...] = ("dev", "train", "test")


@dataclass(frozen=True)
class RowSelection:
    """Some rows of one split, by number, in this order."""

    table: RowTable
    numbers: Sequence[int]

    def rows(self) -> Iterator[tuple[int, Place, Row]]:
        """Yields each row's number from 0, its place and its columns; classes by name."""
        features = {
            column: feature
            for column, feature in self.table.features.items()
            if classes.has_classes(feature)
        }
        for number, (place, row) in zip(self.numbers, self.table.rows(self.numbers), strict=True):
            yield number, place, classes.named(place, row, features) if features else row

    def at(self, positions: Sequence[int]) -> "RowSelection":
        """Returns the rows at these positions of the selection, in this order."""
        return RowSelection(
            self.table, array("q", (self.numbers[position] for position in positions))
        )


def with_rows(rows: Iterator[T], path: Path) -> Iterator[T]:
    """Passes the rows of a file through; raises DataError if there is none."""
    first = next(rows, None)
    if first is None:
        raise DataError(Place(path), "contains no rows", "Fetch the file again, or remove it")
    yield first
    yield from rows


def select_split(opened: Opened, split: Split, spec: str) -> RowSelection:
    """Returns the rows that `spec` names, such as `validation` or `validation[10:]`.

    DataError names the setting to change.
    """
    return RowSelection(*part_of(opened, spec, f"splits.{split}"))
