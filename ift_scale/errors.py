"""Errors that a user can fix. Each names a remedy and the exit code of the command line.

Any other exception is a bug in IFT-Scale and keeps its traceback.
"""

import difflib
import errno
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_USER_INFO = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"]*@")

_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

EXIT_USER = 2
EXIT_ENVIRONMENT = 3
EXIT_STOPPED = 75


class IFTScaleError(Exception):
    """Base class of errors that are reported as a message instead of a traceback."""

    exit_code = EXIT_USER


class ConfigError(IFTScaleError):
    """One or more invalid settings; `problems` has one message each."""

    def __init__(self, source: str, problems: list[str]):
        self.problems = problems
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        super().__init__(
            f"{source}: {count} in the configuration\n" + "\n".join(f"  - {p}" for p in problems)
        )


@dataclass
class Place:
    """A location in a user's input: file, line (from 1) and field."""

    file: str | Path
    line: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        text = f"{self.file}" if self.line is None else f"{self.file}:{self.line}"
        return text if self.field is None else f"{text}: field '{self.field}'"


class DataError(IFTScaleError):
    """Invalid input data. The message has the place, the problem, the value and the remedy."""

    def __init__(self, place: Place, problem: str, remedy: str, value: object = None):
        self.place, self.problem, self.remedy, self.value = place, problem, remedy, value
        shown = "" if value is None else f" (value: {shorten(value)})"
        super().__init__(f"{place}: {problem}{shown}. {remedy}")


OnError = Callable[[DataError], None]
"""Called with the error of each invalid row. If it returns, the row is left out."""


def stop_at(error: DataError) -> None:
    """The `OnError` that leaves no row out: raises the error."""
    raise error


class ArtifactError(IFTScaleError):
    """An output folder that cannot be used because another run holds it or it is damaged."""


class EnvironmentProblem(IFTScaleError):
    """A problem of the machine: a missing package or device, a full disk, a process that died."""

    exit_code = EXIT_ENVIRONMENT


_PATH_ERRORS = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DEVICE_ERRORS = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ETXTBSY)


def file_error(error: OSError, path: str | Path | None = None) -> IFTScaleError | None:
    """Returns the error to report for a path that cannot be used; None for other OSErrors.

    `path`: the path to name instead of the error's own.
    """
    shown = path or error.filename
    if error.errno in _FULL:
        return EnvironmentProblem(
            f"{shown}: the disk is full, so nothing was written there. Free some space, or set "
            "output_dir to another disk, and run the same command again; finished stages are kept."
        )
    is_missing = error.errno == errno.ENOENT and path is not None  # such as a folder in /proc
    if (error.errno in _PATH_ERRORS or is_missing) and shown:
        return ArtifactError(
            f"{shown}: cannot be read or written ({error.strerror}). Give another path, or change "
            "what is there: folders need permission to read and write."
        )
    if error.errno in _DEVICE_ERRORS and shown:
        return EnvironmentProblem(
            f"{shown}: its disk reports an error ({error.strerror}). Check the file system, and "
            "run the same command again; finished stages are kept."
        )
    return None


class Stopped(BaseException):
    """The run was stopped by a signal. Finished work is kept, and the same command resumes.

    Derives from BaseException so that no `except Exception` delays the stop.
    """

    exit_code = EXIT_STOPPED


def shorten(value: object, width: int = 80) -> str:
    """Returns `repr(value)`, cut to `width` characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of 4,300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= width else text[: width - 3] + "..."


def printable(text: str) -> str:
    """Returns a text that can be shown and stored: without what only a terminal or a thief can use.

    Control characters, except line ends and tabs, become escapes such as \\x1b, as do marks that
    reorder a line. User names and passwords in URLs become ***.
    """
    shown = "".join(
        char
        if char in "\n\t"
        or (unicodedata.category(char) not in ("Cc", "Cs") and char not in _REORDERING)
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
    return _USER_INFO.sub(r"\1***@", shown)


def has_user_info(text: str) -> bool:
    """True if a URL in the text contains a user name or password (`https://user:key@host`)."""
    return _USER_INFO.search(text) is not None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'x'?" for the nearest known name, or else the list of known names."""
    known = list(known)
    close = nearest(name, known)
    return f"did you mean '{close}'?" if close else "known: " + ", ".join(sorted(known))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Returns the known name that is most similar, None if none is.

    `cutoff`: least similarity (`difflib.SequenceMatcher.ratio`).
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None
