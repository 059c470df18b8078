"""A case: files, the command that reads them, and the values that must be read from them."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Random = random.Random
Content = bytes | tuple[str, ...]
"""The bytes of a file, or ("fifo",), ("folder",), ("link", TARGET)."""
Oracle = Callable[[Path, str], str | None]
"""From the case's folder and the command's output to what was read wrongly without a word."""


@dataclass
class Case:
    """One input. `files`: by path inside the case's folder, which is the working folder.

    `argv`: the command's arguments. `program`: the command line that takes them. `mutable`: the
    files that mutations change. `changed`: what was done to them, for people.
    """

    files: dict[str, Content]
    argv: list[str]
    program: Any
    mutable: list[str] = field(default_factory=list)
    oracle: Oracle | None = None
    changed: list[str] = field(default_factory=list)
    expected: str = "read"
    """The outcome, of a valid case."""

    def write(self, folder: Path) -> None:
        """Writes the files below `folder`, which is empty."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content[0] == "fifo":
                os.mkfifo(path)
            elif content[0] == "folder":
                path.mkdir()
            else:
                path.symlink_to(content[1])


@dataclass(frozen=True)
class Kind:
    """A kind of input: `valid` cases, and `make` for a case from a random state, valid or not."""

    name: str
    make: Callable[[Random], Case]
    valid: Callable[[], list[Case]]


def copied(case: Case) -> Case:
    """Returns a case whose files and arguments can be changed without those of `case`."""
    return Case(
        dict(case.files),
        list(case.argv),
        case.program,
        list(case.mutable),
        case.oracle,
        list(case.changed),
    )
