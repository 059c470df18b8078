"""Opening users' text files: with or without a byte order mark, gzipped or not, any line endings.

Every read error is a DataError that names the file, and the line if bytes cannot be decoded.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ift_scale.errors import DataError, Place

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
        with _opened(path) as raw:
            encoding = _encoding(path, raw)
            newline = "" if keep_line_ends else None
            yield from io.TextIOWrapper(raw, encoding, newline=newline)
    except UnicodeDecodeError as error:
        remedy = (
            "Save it as UTF-8, for example with iconv -f GB18030 -t UTF-8, or fetch the file again"
        )
        raise DataError(
            Place(path, _undecodable_line(path)),
            f"is damaged or not {error.encoding.upper()}: {error.reason}",
            remedy,
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(Place(path), f"is damaged: {error}", "Fetch the file again") from error
    except OSError as error:
        raise DataError(
            Place(path),
            f"cannot be read: {error.strerror or error}",
            "Give the path of a readable file",
        ) from error


def lone_surrogate(text: str) -> bool:
    r"""True if the text has half of a surrogate pair, such as "\ud800" in JSON.

    Such a text cannot be encoded.
    """
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def refuse_pointer_or_archive(path: Path, head: bytes) -> None:
    """Raises DataError if the file starts like one that must be unpacked or fetched first."""
    for mark, problem, remedy in _NOT_TEXT:
        if head.startswith(mark):
            raise DataError(Place(path), problem, remedy)


def _opened(path: Path) -> IO[bytes]:
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
