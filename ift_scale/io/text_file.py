"""Opening users' text files: with or without a byte order mark, gzipped or not, any line endings.

Every read error is a DataError that names the file, and the line if bytes cannot be decoded.
"""

import codecs
import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ift_scale.errors import DataError, Place
from ift_scale.io import json_text

# UTF-32's mark starts with UTF-16's, so it must be tested first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_TEXT = (
    (b"PK\x03\x04", "is a zip archive (or an Excel file)", "Unpack it, or save it as CSV in UTF-8"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Decompress it, or use gzip"),
    (
        b"version https://git-lfs.github.com/",
        "is a Git LFS pointer, not the file itself",
        "Run `git lfs pull` in its clone",
    ),
)
_GZIP = b"\x1f\x8b"
_LOOK_BYTES = 4096


def lines(path: Path, keep_line_ends: bool = False) -> Iterator[str]:
    """Yields the lines of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Line endings become "\\n" unless `keep_line_ends`, which CSV readers need. The mark is dropped.
    """
    try:
        yield from _decoded(path, "" if keep_line_ends else None)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(Place(path), f"is damaged: {error}", "Fetch the file again") from error
    except OSError as error:
        raise _unopened(path, error) from error


def _decoded(path: Path, newline: str | None) -> Iterator[str]:
    try:
        with _opened(path) as raw:
            yield from io.TextIOWrapper(raw, _encoding(path, raw), newline=newline)
    except UnicodeDecodeError as error:
        remedy = (
            "Save it as UTF-8, for example with iconv -f GB18030 -t UTF-8, or fetch the file again"
        )
        raise DataError(
            Place(path, _undecodable_line(path)),
            f"is damaged or not {error.encoding.upper()}: {error.reason}",
            remedy,
        ) from error


def read(path: Path) -> str:
    """Returns the whole text of a file; raises DataError as `lines` does."""
    return "".join(lines(path))


def refuse_unreadable(path: Path) -> None:
    """Raises DataError unless `path` is a regular file; a FIFO or a device may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise _unopened(path, error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device"
        raise DataError(Place(path), f"is {kind}, not a file", "Give the path of a regular file")


def read_object(path: Path, remedy: str, field: str | None = None) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises DataError if the file cannot be read or has anything else. `remedy` completes the error;
    `field` is what the file is read for.
    """
    text = read(path)
    try:
        value = json_text.decode(text)
    except json_text.InvalidJson as error:
        raise refusal(Place(path, error.line, field), error, remedy) from error
    if not isinstance(value, dict):
        raise DataError(Place(path, field=field), "not a JSON object", remedy, value)
    if (lone := json_text.first_lone_surrogate(value)) is not None:
        place = Place(path, field=lone[0])
        raise DataError(place, "contains half of a surrogate pair", remedy, lone[1])
    return value


def refusal(
    place: Place, error: json_text.InvalidJson, remedy: str, shown: object = None
) -> DataError:
    """Returns the DataError for a text that is not JSON."""
    if error.key is not None:
        place = Place(place.file, place.line, error.key)
        return DataError(place, "duplicate key in the object", "Remove one of the two", shown)
    return DataError(place, f"not valid JSON: {error}", remedy, shown)


def refuse_pointer_or_archive(path: Path, head: bytes) -> None:
    """Raises DataError if the file starts like one that must be unpacked or fetched first."""
    for mark, problem, remedy in _NOT_TEXT:
        if head.startswith(mark):
            raise DataError(Place(path), problem, remedy)


def _unopened(path: Path, error: OSError | ValueError) -> DataError:
    problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if isinstance(error, FileNotFoundError):
        problem = "no such file or folder"
    return DataError(Place(path), problem, "Give the path of a readable file")


def _opened(path: Path) -> IO[bytes]:
    refuse_unreadable(path)
    with path.open("rb") as file:
        is_gzip = path.suffix == ".gz" or file.read(2) == _GZIP
    return gzip.open(path, "rb") if is_gzip else path.open("rb")  # type: ignore[return-value]


def _encoding(path: Path, raw: IO[bytes]) -> str:
    head: bytes = raw.peek(_LOOK_BYTES)[:_LOOK_BYTES]  # type: ignore[attr-defined]
    refuse_pointer_or_archive(path, head)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise DataError(
            Place(path), "is binary, or UTF-16 without a byte order mark", "Save it as UTF-8"
        )
    return "utf-8"


def _undecodable_line(path: Path) -> int | None:
    """Returns the number of the first line that is not UTF-8.

    None for UTF-16, where line endings cannot be located in the bytes.
    """
    with _opened(path) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return (
                    None
                    if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
                    else number
                )
    return None
