"""Progress display: a live bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from ift_scale.errors import printable

_SECONDS_BETWEEN_LINES = 5.0
console = Console(stderr=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints a line of the run's log."""
    console.print(printable(text), markup=False)


class Bar:
    """Counts the items of one task, of which there are `total` (None if unknown).

    `advance` and `note` are cheap to call often.
    """

    def __init__(self, title: str, total: int | None, live: Progress | None):
        self.title, self.total, self.done = title, total, 0
        self._note = ""
        self._live = live
        self._task = live.add_task(title, total=total) if live else None
        self._started = time.monotonic()
        self._next_line = self._started + _SECONDS_BETWEEN_LINES

    def advance(self, count: int = 1) -> None:
        self.done += count
        self._show()

    def note(self, text: str) -> None:
        """Sets the text shown after the title, such as the current item."""
        self._note = text
        self._show()

    def _show(self) -> None:
        title = f"{self.title}: {self._note}" if self._note else self.title
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, description=printable(title))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            of_total = "" if self.total is None else f"/{self.total}"
            say(f"  {title}  {self.done}{of_total}  {time.monotonic() - self._started:.0f} s")


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Bar]:
    """Yields a bar for the block."""
    if not sys.stdout.isatty():
        yield Bar(title, total, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield Bar(title, total, live)
