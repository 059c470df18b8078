"""Reading users' JSON lines (plain or gzipped), row by row, each with its line number."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_scale.errors import DataError, Place

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def exists(folder: Path, stem: str) -> bool:
    """Whether `find` finds one."""
    return any((folder / f"{stem}{suffix}").is_file() for suffix in _SUFFIXES)


def find(folder: Path, stem: str) -> Path:
    """`folder/stem.jsonl`, `.json` or either with `.gz`; DataError names what was looked for."""
    names = [f"{stem}{suffix}" for suffix in _SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(Place(folder), f"no file {' or '.join(names)}", "Set the source's path to the folder that holds it")


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of each line; DataError on anything that is not a JSON object."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _row(path, number, line)
    except gzip.BadGzipFile as error:
        raise DataError(Place(path), f"is damaged: {error}", "Fetch the file again") from error
    except OSError as error:
        raise DataError(Place(path), f"cannot be read: {error.strerror or error}", "Give the path of a readable file") from error
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(Place(path), f"is damaged: {error}", "Fetch the file again; it must be UTF-8") from error


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(Place(path, number), f"not valid JSON: {error}", "Mend or remove the line", line.strip()) from error
    if not isinstance(row, dict):
        raise DataError(Place(path, number), "not a JSON object", 'Each line must be an object such as {"question": ...}', row)
    return row
