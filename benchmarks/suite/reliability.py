"""The tables of docs/reliability.md: the campaign of kills, and the soak."""

from collections.abc import Sequence

from benchmarks.suite.markdown import commits, markdown_table, measured
from benchmarks.suite.rows import Row, number, only

_KINDS = {
    "SIGKILL to command": "the command killed",
    "SIGTERM to command": "the command stopped (SIGTERM)",
    "": "a launcher or rank killed or stopped",
}


def _kind(row: Row) -> str:
    return row.quantity if row.quantity in _KINDS else ""


def kills_table(rows: Sequence[Row]) -> str:
    """Kills and seconds until all processes were gone, by moment and target."""
    found = only(rows, benchmark="kills")
    if not found:
        return "No rows are stored yet: `python -m benchmarks run kills`."
    moments = list(dict.fromkeys(row.case for row in found))
    lines = []
    for moment in (*moments, "all"):
        of_moment = found if moment == "all" else only(found, case=moment)
        lines.append(
            [moment, *(_kills([row for row in of_moment if _kind(row) == kind]) for kind in _KINDS)]
        )
    caption = (
        f"{measured(*found)}, {commits(found)}: `python -m benchmarks run kills`. "
        f"{sum(row.repeats for row in found)} kills in {len({row.who for row in found})} lives of "
        f"a run of {found[0].about['files']} files. Number of kills, and seconds until all "
        "processes were gone: median (smallest to largest)."
    )
    return f"{caption}\n\n{markdown_table(['moment', *_KINDS.values()], lines)}"


def _kills(rows: Sequence[Row]) -> str:
    seconds = sorted(sample for row in rows for sample in row.samples)
    if not seconds:
        return ""
    median = number(seconds[len(seconds) // 2])
    spread = f" ({number(seconds[0])} to {number(seconds[-1])})" if len(seconds) > 1 else ""
    return f"{len(seconds)}: {median}{spread}"


def soak_table(rows: Sequence[Row]) -> str:
    """Growth of memory, open files and threads with intervals, by work and process."""
    found = only(rows, benchmark="soak")
    if not found:
        return "No rows are stored yet: `python -m benchmarks run soak`."
    quantities = list(dict.fromkeys(row.quantity for row in found))
    lines = []
    for who, case in dict.fromkeys((row.who, row.case) for row in found):
        mine = {row.quantity: row for row in only(found, who=who, case=case)}
        lines.append([who, case, *(_growth(mine[quantity]) for quantity in quantities)])
    heads = [f"{q.removeprefix('growth of ')}" for q in quantities]
    caption = (
        f"{measured(*found)}, {commits(found)}: `python -m benchmarks run soak`. Mean, and growth "
        "after the first fifth of the work with its 95% interval; memory in MiB."
    )
    return f"{caption}\n\n{markdown_table(['work', 'process', *heads], lines)}"


def _growth(row: Row) -> str:
    assert row.interval is not None
    low, high = row.interval
    return f"{row.about['level']:,.1f}; {row.value:+.2f} [{low:.2f}, {high:.2f}]"
