"""How a plan's tables and numbers look in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

WIDTH = 132  # a log has no width, and a table must not be folded into rich's 80 columns
GIB = 2**30


def show(table: Table) -> None:
    Console(width=WIDTH, highlight=False).print(table)


def new_table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def hours(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
