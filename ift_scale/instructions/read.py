"""Streams the conversations of a source, and counts what is left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ift_scale import draws
from ift_scale.config.instructions import InstructionSource
from ift_scale.errors import DataError, OnError, Place, stop_at
from ift_scale.instructions.conversation import Conversation, checked, id_of
from ift_scale.instructions.formats import RowReader
from ift_scale.io.dataset import Opened, open_dataset, part_of, split_of
from ift_scale.io.dataset_folders import ONLY_SPLIT
from ift_scale.io.jsonl import Row
from ift_scale.records import Message


@dataclass
class Skipped:
    """What became of a source's rows.

    `reasons`: the number of rows left out by reason, `first`: the first place of each. `ignored`:
    the number of rows with a column that was not used, by column.
    """

    format: str = ""
    num_read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, Place] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, error: DataError) -> None:
        """Counts a row that was left out because of `error`."""
        # What follows a colon or a parenthesis differs from row to row.
        reason = error.problem.partition(":")[0].partition(" (")[0]
        self.reasons[reason] += 1
        self.first.setdefault(reason, error.place)

    def summary(self, path: str) -> str:
        """Returns one line: format, examples, rows left out by reason, columns not used."""
        parts = [f"{path}: format {self.format}, {self.num_read} examples"]
        if self.reasons:
            listed = ", ".join(
                f"{count} {reason} (first: {self.first[reason]})"
                for reason, count in self.reasons.most_common()
            )
            parts.append(f"{self.reasons.total()} left out: {listed}")
        if self.ignored:
            parts.append(f"columns not used: {', '.join(sorted(self.ignored))}")
        return "; ".join(parts)


def read(source: InstructionSource, report: Skipped) -> Iterator[Conversation]:
    """Yields the conversations of a source in the order of its rows; fills `report`.

    Memory does not grow with the source, except for 70 bytes per example and for a JSON list, which
    is read as a whole. Raises DataError for a row that cannot be used, unless `source.on_error` is
    `skip`, and for a source without any example.
    """
    on_error = report.add if source.on_error == "skip" else stop_at
    reader, unique = RowReader(source.format, source.tools), draws.Unique()
    for place, row in _rows(source, on_error):
        try:
            messages, weight = _conversation(reader, place, row)
        except DataError as error:
            on_error(_indexed(error, place))
            continue
        report.num_read += 1
        yield Conversation(messages, place, unique(id_of(messages)), weight)
    report.format, report.ignored = str(reader.format), reader.ignored
    if not report.num_read:
        found = report.summary(source.path) if report.reasons else None
        remedy = "Check the path, or fix the rows that were left out"
        raise DataError(Place(source.path), "has no example that can be used", remedy, found)


def _conversation(reader: RowReader, place: Place, row: Row) -> tuple[list[Message], float]:
    return checked(reader.turns(place, row), place), reader.weight(place, row)


def _rows(source: InstructionSource, on_error: OnError) -> Iterator[tuple[Place, Row]]:
    """Yields the rows of the source's split.

    Rows on the same line, such as those of a JSON list without line breaks, are identified by an
    index before the field, such as `[2].messages[0]`, from the second row on.
    """
    opened = open_dataset(source.path, source.name)
    spec = source.split or _only_split(opened)
    if "[" in spec:
        table, numbers = part_of(opened, spec, "split")
        rows = table.rows(numbers)
    else:
        rows = split_of(opened, spec, "split").stream(on_error)
    line, index = None, 0
    for place, row in rows:
        index = index + 1 if place.line == line else 0
        line = place.line
        yield (replace(place, field=f"[{index}]") if index else place), row


def _indexed(error: DataError, row: Place) -> DataError:
    """Returns the error with the row's index before its field."""
    field = error.place.field
    if row.field is None or field == row.field:
        return error
    return DataError(
        replace(error.place, field=f"{row.field}.{field}"), error.problem, error.remedy, error.value
    )


def _only_split(opened: Opened) -> str:
    return next(iter(opened.splits)) if len(opened.splits) == 1 else ONLY_SPLIT
