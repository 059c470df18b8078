"""What can go wrong for a user, each with a remedy, and the exit code that the command line ends with.

Everything else that is raised is a defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXIT_USER = 2
EXIT_ENVIRONMENT = 3
EXIT_STOPPED = 75


class IFTScaleError(Exception):
    """Base of all errors that are told in a sentence rather than as a traceback."""

    exit_code = EXIT_USER


class ConfigError(IFTScaleError):
    """One or more settings that cannot be used; `problems` holds a line for each."""

    def __init__(self, source: str, problems: list[str]):
        self.problems = problems
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        super().__init__(
            f"{source}: {count} in the configuration\n" + "\n".join(f"  - {p}" for p in problems)
        )


@dataclass
class Place:
    """Where in a user's input something was found: file, line (from 1), field."""

    file: str | Path
    line: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        text = f"{self.file}" if self.line is None else f"{self.file}:{self.line}"
        return text if self.field is None else f"{text}: field '{self.field}'"


class DataError(IFTScaleError):
    """Input data that cannot be used: place, what is wrong, the value, and what to do."""

    def __init__(self, place: Place, problem: str, remedy: str, value: object = None):
        shown = "" if value is None else f" (value: {shorten(value)})"
        super().__init__(f"{place}: {problem}{shown}. {remedy}")


class ArtifactError(IFTScaleError):
    """An output folder that cannot be used: held by another run, or damaged."""


class EnvironmentProblem(IFTScaleError):
    """Something the machine lacks: a package, disk space, a device, or a process that died."""

    exit_code = EXIT_ENVIRONMENT


class Stopped(BaseException):
    """Ended by a signal; what is finished is kept and the same command goes on from there. No `except Exception` holds it up."""

    exit_code = EXIT_STOPPED


def shorten(value: object, width: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(sorted(known))
