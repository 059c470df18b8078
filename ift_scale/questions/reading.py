"""Opens a dataset: a hub id through the `datasets` library, a local folder or file directly.

All three give the same: rows by split, one at a time, each with its place. Memory does not grow
with the dataset.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io.jsonl import Row
from ift_scale.questions import classes, folders
from ift_scale.questions.tables import SUFFIXES, DatasetTable, FileTable, RowTable, suffix
from ift_scale.records import Split

SPLITS: tuple[Split, ...] = ("dev", "train", "test")


@dataclass(frozen=True)
class Opened:
    """A dataset's splits by name, and its name in messages."""

    path: str
    splits: Mapping[str, RowTable]


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


def open_dataset(
    path: str, name: str | None = None, name_required: bool = True, **options: Any
) -> Opened:
    """Opens a hub id, a local folder, or a local file, whose only split is `train`.

    `name` is the dataset's configuration; if `name_required` is false, a local folder may lack it.
    Raises DataError if the dataset does not exist or cannot be read.
    """
    local = Path(path)
    if local.is_file():
        return open_files(path, {folders.ONLY_SPLIT: local})
    if not local.is_dir():
        return _from_hub(path, name, **options)
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return _saved_to_disk(path)
    files, features = folders.find(local, name, name_required)
    return Opened(path, {split: FileTable(paths, features) for split, paths in files.items()})


def open_files(path: str, files: Mapping[str, Path]) -> Opened:
    """Opens local files, one per split; their columns may differ."""
    for file in files.values():
        if suffix(file) not in SUFFIXES:
            raise DataError(
                Place(file),
                "has an unknown type",
                f"Known: {', '.join(SUFFIXES)}, also with .gz",
            )
    return Opened(path, {split: FileTable([file]) for split, file in files.items()})


def select_split(opened: Opened, split: Split, spec: str) -> RowSelection:
    """Returns the rows that `spec` names, such as `validation` or `validation[10:]`.

    DataError names the setting to change.
    """
    import datasets

    name = spec.split("[")[0]
    known_name = _split_name(opened, name)
    if known_name is None:
        raise DataError(
            Place(opened.path),
            f"has no split '{name}'",
            f"Set splits.{split}: {did_you_mean(name, map(str, opened.splits))}",
        )
    table = opened.splits[known_name]
    if not len(table):
        remedy = f"Fetch it again, or set splits.{split} to another split"
        raise DataError(Place(opened.path), f"its split '{known_name}' has no rows", remedy)
    try:
        (part,) = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(table)})
    except (ValueError, AssertionError) as error:
        remedy = f"Set splits.{split} to a split or one slice of it, such as {name}[:10]"
        raise DataError(Place(opened.path), f"cannot take '{spec}': {error}", remedy) from error
    return RowSelection(table, range(part.from_, part.to))


def _split_name(opened: Opened, name: str) -> str | None:
    """Returns `name` if it exists; for `validation` also a single dev, val or valid."""
    if name in opened.splits:
        return name
    same = (
        [split for split in opened.splits if split in ("dev", "val", "valid")]
        if name == "validation"
        else []
    )
    return same[0] if len(same) == 1 else None


def _from_hub(path: str, name: str | None, **options: Any) -> Opened:
    """Loads a dataset from the hub; any failure becomes a DataError."""
    import datasets

    try:
        return _tables(path, datasets.load_dataset(path, name, **options))
    # `datasets` raises many unrelated types for a dataset that is unavailable.
    except Exception as error:
        remedy = "Check the name, or download it on a machine with network access and give its path"
        problem = f"no such file or folder, and datasets cannot load it: {error.__cause__ or error}"
        raise DataError(Place(path), problem, remedy) from error


def _saved_to_disk(path: str) -> Opened:
    """Loads a folder that `datasets` wrote with save_to_disk."""
    import datasets

    try:
        loaded = datasets.load_from_disk(path)
    except Exception as error:
        raise DataError(
            Place(path), f"datasets cannot load it: {error}", "Save the dataset again"
        ) from error
    return _tables(path, loaded if isinstance(loaded, dict) else {folders.ONLY_SPLIT: loaded})


def _tables(path: str, splits: Mapping[Any, Any]) -> Opened:
    return Opened(
        path,
        {str(split): DatasetTable(f"{path}[{split}]", table) for split, table in splits.items()},
    )
