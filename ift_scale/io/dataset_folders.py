"""Finds the files of each split in a local dataset folder.

Supported are folders as `hf download` and `git clone` create them (a README.md that lists
configurations and their files, or one folder per configuration), copies without a README, and plain
folders of files. A split's name comes from README.md, or from the name of the file or folder:
`train.csv`, `data/train-00000-of-00002.parquet`, `law_dev.csv`, `test/0000.parquet`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io import text_file, yaml_text
from ift_scale.io.tables import SUFFIXES, suffix

# The split that `datasets` assigns to files that name none.
ONLY_SPLIT = "train"
_SPLITS = {
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
}
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
# Metadata files next to the data.
_DESCRIPTIONS = {
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "package.json",
}

Files = dict[str, list[Path]]


class DatasetFiles(NamedTuple):
    """The files of each split, and the column types that README.md declares."""

    files: Files
    features: Mapping[str, Any]


def find(folder: Path, name: str | None, required: bool = True) -> DatasetFiles:
    """Returns the files of configuration `name`, by default the only or default one.

    If `required` is false, the whole folder is read if it has no such configuration. Raises
    DataError if the configuration or any data file is missing.
    """
    card = _card(folder)
    listed = {
        str(config.get("config_name")): config
        for config in card.get("configs") or []
        if isinstance(config, dict)
    }
    if name is None and len(listed) > 1:
        name = _default(folder, listed)
    if name in listed or (name is None and listed):
        name = name or next(iter(listed))
        files = _listed_files(folder, name, listed[name].get("data_files"))
    elif name is not None and (folder / name).is_dir():
        files = by_name(folder / name)
    elif name is not None and required:
        known = [*listed, *(path.name for path in _visible(folder) if path.is_dir())]
        raise DataError(
            Place(folder),
            f"has no configuration '{name}'",
            f"Set `name`: {did_you_mean(name, known)}",
        )
    else:
        files = by_name(folder)
    return DatasetFiles(files, _features(folder, card, name))


def by_name(folder: Path) -> Files:
    """Returns a folder's files by split: directly, in `data`, or in folders named as splits."""
    for inside in (folder, folder / "data"):
        files = _by_stem(data_files(inside))
        if files:
            return _checked(files)
        parts = {
            path.name: data_files(path)
            for path in _visible(inside)
            if path.is_dir() and path.name.lower() in _SPLITS
        }
        files = {split: listed for split, listed in parts.items() if listed}
        if files:
            return _checked(files)
    held = sorted(path.name for path in _visible(folder))
    packed = [name for name in held if name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))]
    remedy = (
        f"Unpack {packed[0]} there first"
        if packed
        else f"Known types: {', '.join(SUFFIXES)}, also with .gz"
    )
    raise DataError(Place(folder), "contains no data file", remedy, held)


def data_files(folder: Path) -> list[Path]:
    """Returns a folder's data files by name, without hidden files and metadata."""
    return [
        path
        for path in _visible(folder)
        if path.is_file() and suffix(path) in SUFFIXES and path.name not in _DESCRIPTIONS
    ]


def is_hidden(path: Path, root: Path) -> bool:
    """True for files that tools keep in a folder: .git, .cache, a Mac's __MACOSX and ._NAME."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def _visible(folder: Path) -> list[Path]:
    """Returns a folder's entries in order of name, hidden ones excluded."""
    return (
        sorted(path for path in folder.iterdir() if not is_hidden(path, folder))
        if folder.is_dir()
        else []
    )


def _by_stem(files: Sequence[Path]) -> Files:
    """Groups files by the split in their names; files without one count only if none has one."""
    named = [(split_of(file), file) for file in files]
    if any(split is not None for split, _ in named):
        named = [(split, file) for split, file in named if split is not None]
    files_of: Files = {}
    for split, file in named:
        files_of.setdefault(split or ONLY_SPLIT, []).append(file)
    return files_of


def split_of(file: Path) -> str | None:
    """Returns the split that a file's name gives, or None."""
    stem = file.name.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    if shard is not None:
        return shard["split"]
    words = [word for word in re.split(r"[^A-Za-z]+", file.name.lower()) if word in _SPLITS]
    return words[0] if len(set(words)) == 1 else None


def _checked(files: Files) -> Files:
    """Raises DataError if a split has files of several types."""
    for split, listed in files.items():
        kinds = {suffix(file) for file in listed}
        if len(kinds) > 1:
            problem = f"has files of several types for split {split}"
            raise DataError(
                Place(listed[0].parent),
                problem,
                "Remove the copies",
                [file.name for file in listed],
            )
    return files


def _card(folder: Path) -> dict[str, Any]:
    """Returns the YAML header of README.md, empty if there is none."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    lines = iter(text_file.lines(path))
    if next(lines, "").strip() != "---":
        return {}
    head: list[str] = []
    for line in lines:
        if line.strip() == "---":
            break
        head.append(line)
    try:
        header = yaml_text.parse("".join(head))
    except yaml_text.InvalidYaml as error:
        raise DataError(
            Place(path),
            f"its YAML header cannot be read: {error}",
            "Fix the header, or remove README.md",
        ) from error
    return header if isinstance(header, dict) else {}


def _default(folder: Path, listed: Mapping[str, dict[str, Any]]) -> str:
    """Returns the configuration that README.md marks as default; DataError if there is none."""
    marked = [name for name, config in listed.items() if config.get("default") or name == "default"]
    if len(marked) != 1:
        raise DataError(
            Place(folder),
            f"has {len(listed)} configurations",
            f"Set `name` to one of {', '.join(sorted(listed))}",
        )
    return marked[0]


def _listed_files(folder: Path, name: str, entries: Any) -> Files:
    """Returns the files that README.md lists for a configuration, without missing splits."""
    if entries is None:
        return by_name(folder / name if (folder / name).is_dir() else folder)
    if isinstance(entries, str) or all(isinstance(entry, str) for entry in entries):
        entries = [{"split": ONLY_SPLIT, "path": entries}]
    files: Files = {}
    for entry in entries:
        if not isinstance(entry, dict) or not {"split", "path"} <= set(entry):
            place = Place(folder / "README.md", field="configs")
            raise DataError(
                place,
                "has a data file without split and path",
                "Fix it, or remove README.md",
                entry,
            )
        patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        matching = sorted({path for pattern in patterns for path in _matching(folder, pattern)})
        if matching:
            files[str(entry["split"])] = matching
    if not files:
        problem = f"lists files for configuration '{name}', but none of them exists"
        raise DataError(
            Place(folder / "README.md", field="configs"),
            problem,
            "Download the whole dataset again",
            entries,
        )
    return _checked(files)


def _matching(folder: Path, pattern: str) -> Iterable[Path]:
    return (
        path
        for path in folder.glob(pattern)
        if path.is_file() and suffix(path) in SUFFIXES and not is_hidden(path, folder)
    )


def _features(folder: Path, card: dict[str, Any], name: str | None) -> Mapping[str, Any]:
    """Returns the column types that README.md declares for the configuration."""
    if "dataset_info" not in card:
        return {}
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    try:
        infos = DatasetInfosDict.from_dataset_card_data(
            DatasetCardData(dataset_info=card["dataset_info"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        place = Place(folder / "README.md", field="dataset_info")
        raise DataError(place, f"cannot be read: {error}", "Fix it, or remove README.md") from error
    info = infos.get(name or "default") or (next(iter(infos.values())) if len(infos) == 1 else None)
    return (info.features or {}) if info is not None else {}
