"""Formatting of a plan's tables and numbers."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

# Logs have no width, and tables must not be folded into rich's default of 80 columns.
WIDTH = 132
GIB = 2**30


def show(table: Table) -> None:
    """Prints a table."""
    Console(width=WIDTH, highlight=False).print(table)


def new_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """Returns an empty table with left-aligned and right-aligned columns."""
    table = Table(box=None, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def duration(seconds: float | None) -> str:
    """Formats seconds with a suitable unit."""
    if seconds is None:
        return "?"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def hours(value: float | None) -> str:
    """Formats GPU-hours or core-hours."""
    return "?" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
