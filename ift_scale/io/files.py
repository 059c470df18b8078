"""Files that are written completely or not at all, and the formats that stages read and write.

Writers use a temporary name next to the final one. If the block ends without an error, the file is
flushed to disk and renamed. A full or read-only disk is reported as one clear error.
"""

import errno
import json
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ift_scale.errors import DataError, Place, file_error
from ift_scale.io import text_file

INCOMPLETE = ".incomplete"
_RECREATE = "The file was edited after it was written; remove its folder to recreate it"


_MOST_LEVELS, _LONGEST = 200, 3000
"""Of an output folder's path; the system's limits are 4,096 bytes, with names of files inside."""

M = TypeVar("M", bound=BaseModel)


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into one clear error."""
    try:
        yield
    except OSError as error:
        reported = file_error(error, path)
        if reported is None:
            raise
        raise reported from error
    except Exception as error:
        # safetensors has its own exception type; torch reports that the file is too short.
        if not any(
            text in str(error) for text in ("No space left on device", "inline_container.cc")
        ):
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise file_error(full, path) or error from error


def folder_problem(path: Path) -> str | None:
    """Returns why no folder can be at `path`, as a predicate; None if it exists or can be made."""
    if len(path.parts) > _MOST_LEVELS or len(os.fsencode(path)) > _LONGEST:
        return (
            f"cannot be a folder: its path has {len(path.parts)} levels, {len(str(path))} letters"
        )
    for part in (path, *path.parents):
        try:
            mode = part.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if part.is_symlink():
                return f"cannot be a folder: {part} is a symbolic link to nothing"
        except OSError as error:
            return f"cannot be a folder: {error.strerror}"
        else:
            return None if stat.S_ISDIR(mode) else f"cannot be a folder: {part} is a file"
    return None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, which is renamed to `path` if the block succeeds."""
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(
            f".{path.name}{INCOMPLETE}-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        )
        try:
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, which replaces all of `path` if the block succeeds."""
    with translate_disk_errors(path):
        temporary = path.with_name(f".{path.name}{INCOMPLETE}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            flush(temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(path: Path, to: Path) -> None:
    """Creates `to` as a hard link of `path`, or as a copy if the file system has no hard links."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copy2(path, to)


def remove_incomplete(folder: Path, name: str | None = None) -> None:
    """Removes the incomplete files that killed runs left below `folder`, or those of its member
    `name`. Only for the process that holds the folder's lock."""
    paths = (
        folder.rglob(f".*{INCOMPLETE}*") if name is None else folder.glob(f".{name}{INCOMPLETE}*")
    )
    for path in sorted(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Flushes all files below `folder` to disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def log_tail(path: Path, num_lines: int = 20) -> str:
    """Returns the last lines of a child process's log, for an error message."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:]
    return "\n".join([f"the last lines of {path}:", *(f"  {line}" for line in lines)])


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file of a stage, or an empty dict if it does not exist.

    Raises DataError if it was edited.
    """
    return text_file.read_object(path, _RECREATE) if path.is_file() else {}


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Writes one record per line; returns their number."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json(exclude_none=True) + "\n")
            count += 1
    return count


def read_jsonl(path: Path, record_type: type[M]) -> list[M]:
    """Returns the records of a file that a stage wrote. Raises DataError if it was edited."""
    return list(iterate_jsonl(path, record_type))


def iterate_jsonl(path: Path, record_type: type[M]) -> Iterator[M]:
    """Yields the records of a file that a stage wrote. Raises DataError if it was edited."""
    for number, line in enumerate(text_file.lines(path), start=1):
        yield read_record(line, record_type, Place(path, number))


def read_record(line: str | bytes, record_type: type[M], place: Place) -> M:
    """Returns the record in a line that a stage wrote. Raises DataError if it was edited."""
    try:
        return record_type.model_validate_json(line, strict=True)
    except ValidationError as error:
        raise edited(error, place) from error


def edited(error: ValidationError, place: Place) -> DataError:
    """Returns the DataError for a record that no stage writes."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or None
    place = Place(place.file, place.line, field)
    return DataError(place, problem["msg"], _RECREATE, problem["input"])


def read_parquet(
    path: Path, record_type: type[M], where: list[tuple[str, str, Any]] | None = None
) -> list[M]:
    """Returns the rows that satisfy `where`, such as [("split", "=", "train")]."""
    import pyarrow.parquet as pq

    return [
        record_type.model_validate(row) for row in pq.read_table(path, filters=where).to_pylist()
    ]
