"""Opens a dataset: a hub id through the `datasets` library, a local folder or file directly.

All three give the same: rows by split, one at a time, each with its place. Memory does not grow
with the dataset.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io import dataset_folders, text_file
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.io.tables import SUFFIXES, DatasetTable, FileTable, RowTable, suffix

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
"""NAME or OWNER/NAME; any other text is a path."""


@dataclass(frozen=True)
class Opened:
    """A dataset's splits by name, and its name in messages."""

    path: str
    splits: Mapping[str, RowTable]


def open_dataset(
    path: str, name: str | None = None, name_required: bool = True, **options: Any
) -> Opened:
    """Opens a hub id, a local folder, or a local file, whose only split is `train`.

    `name` is the dataset's configuration; if `name_required` is false, a local folder may lack it.
    Raises DataError if the dataset does not exist or cannot be read.
    """
    local = Path(path)
    if local.is_file():
        return open_files(path, {dataset_folders.ONLY_SPLIT: local})
    if not local.is_dir():
        if _HUB_ID.fullmatch(path) is None or suffix(local) in SUFFIXES or local.exists():
            text_file.refuse_unreadable(local)
        return _from_hub(path, name, **options)
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return _saved_to_disk(path)
    files, features = dataset_folders.find(local, name, name_required)
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


def part_of(opened: Opened, spec: str, setting: str) -> tuple[RowTable, range]:
    """Returns the table and the row numbers that `spec` names: a split, or a slice of one such as
    `validation[10:]`.

    DataError names `setting` as the one to change.
    """
    import datasets

    name = spec.split("[")[0]
    table = split_of(opened, name, setting)
    if not len(table):
        remedy = f"Fetch it again, or set {setting} to another split"
        raise DataError(Place(opened.path), f"its split '{name}' has no rows", remedy)
    try:
        (part,) = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(table)})
    except (ValueError, AssertionError) as error:
        remedy = f"Set {setting} to a split or one slice of it, such as {name}[:10]"
        raise DataError(Place(opened.path), f"cannot take '{spec}': {error}", remedy) from error
    return table, range(part.from_, part.to)


def split_of(opened: Opened, name: str, setting: str) -> RowTable:
    """Returns the table of a split; for `validation` also a single dev, val or valid."""
    same = [
        split
        for split in opened.splits
        if name == "validation" and split in ("dev", "val", "valid")
    ]
    if name not in opened.splits and len(same) != 1:
        raise DataError(
            Place(opened.path),
            f"has no split '{name}'",
            f"Set {setting}: {did_you_mean(name, map(str, opened.splits))}",
        )
    return opened.splits[name if name in opened.splits else same[0]]


def files_digest(path: str) -> str | None:
    """Returns a digest of a local file, or of the visible files of a folder; None for a hub id."""
    root = Path(path)
    if not root.exists():
        return None
    # Hidden files (.git, a download's .cache) change without the data.
    inside = (
        file
        for file in root.rglob("*")
        if file.is_file() and not dataset_folders.is_hidden(file, root)
    )
    files = sorted(inside) if root.is_dir() else [root]
    return digest_of({str(file): file_digest(file) for file in files})


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
    return _tables(
        path, loaded if isinstance(loaded, dict) else {dataset_folders.ONLY_SPLIT: loaded}
    )


def _tables(path: str, splits: Mapping[Any, Any]) -> Opened:
    return Opened(
        path,
        {str(split): DatasetTable(f"{path}[{split}]", table) for split, table in splits.items()},
    )
