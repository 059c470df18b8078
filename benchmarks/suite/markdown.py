"""Markdown of the generated blocks: a table, and the caption that dates it."""

from collections.abc import Sequence

from benchmarks.suite.rows import Row

COMMIT_LETTERS = 7


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *lines])


def hardware(row: Row) -> str:
    """`AMD EPYC, 2 cores`, or the GPU and its host."""
    return row.machine if row.device == "cpu" else f"{row.device} in {row.machine}"


def measured(*rows: Row) -> str:
    """`2026-11-22 to 2026-11-25, AMD EPYC, 2 cores`: the days of all the rows, and every machine once."""
    days = sorted({row.date[:10] for row in rows})
    machines = dict.fromkeys(map(hardware, rows))
    return f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, {'; '.join(machines)}"


def commits(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys((row.commit or "no commit")[:COMMIT_LETTERS] for row in rows))
