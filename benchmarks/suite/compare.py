"""Compares two stored runs: for every figure in both, how many times better the second is.

The interval ranges from the second's worst over the first's best repeat to the second's best over
the first's worst, so a difference outside it is larger than all observed variation. Seconds and
rates of different machines are listed without a verdict: only counts and ratios to a peer of the
same run are comparable between machines.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.suite.registry import CHECKOUT
from benchmarks.suite.rows import Better, Row, Spread, read
from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_record

FEWEST = 3
"""Minimum number of repeats for a verdict."""
Verdict = Literal[
    "gain", "LOSS", "within the spread", "too few repeats", "other machine", "same", "CHANGED"
]
_FOLDER = "benchmarks/results"


@dataclass(frozen=True)
class Change:
    """One figure in both runs.

    `factor` is how many times better the second is (second over first if no direction is better).
    """

    title: str
    unit: str
    first: float
    second: float
    factor: float
    low: float
    high: float
    verdict: Verdict


def load(name: str) -> list[Row]:
    """Returns the rows of a file, a folder, or a git revision; DataError if there are none."""
    path = Path(name)
    found = read(path) if path.exists() else _of_revision(name)
    if not found:
        raise DataError(
            Place(name),
            "contains no benchmark rows",
            "Pass a file or folder of rows, or a revision with stored rows",
        )
    return found


def _of_revision(revision: str) -> list[Row]:
    listed = _git("ls-tree", "--name-only", revision, f"{_FOLDER}/")
    if listed is None:
        remedy = "Pass a file or folder of rows, or a revision of this repository"
        raise DataError(Place(revision), "is not a file, folder or git revision", remedy)
    places = [Place(f"{revision}:{path}") for path in listed.split() if path.endswith(".jsonl")]
    return [
        read_record(line, Row, Place(place.file, number))
        for place in places
        for number, line in enumerate((_git("show", str(place)) or "").splitlines(), start=1)
    ]


def _git(*arguments: str) -> str | None:
    ended = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True)
    return ended.stdout if ended.returncode == 0 else None


def compare(first: Sequence[Row], second: Sequence[Row]) -> list[Change]:
    """Compares every figure in both runs, and every ratio to a peer in both."""
    before = {row.key: row for row in first}
    out = []
    for row in second:
        old = before.get(row.key)
        if old is None:
            continue
        other_machine = (old.machine, old.device) != (row.machine, row.device)
        out.append(_change(row.title, row.unit, old, row, row.better, other_machine))
        for peer in old.ratios.keys() & row.ratios.keys():
            ratios = old.ratios[peer], row.ratios[peer]
            title = f"{row.title} | compared with {peer}"
            out.append(_change(title, "times", *ratios, "higher", False))
    return out


def _change(
    title: str, unit: str, old: Spread, new: Spread, better: Better, other_machine: bool
) -> Change:
    values = title, unit, old.value, new.value
    if better == "neither":
        factor = _over(new.value, old.value)
        return Change(
            *values, factor, factor, factor, "same" if old.value == new.value else "CHANGED"
        )
    numbers = (new.value, new.low, new.high), (old.value, old.high, old.low)
    if better == "lower":
        numbers = (old.value, old.low, old.high), (new.value, new.high, new.low)
    factor, low, high = (_over(a, b) for a, b in zip(*numbers, strict=True))
    return Change(*values, factor, low, high, _verdict(low, high, old, new, other_machine))


def _over(a: float, b: float) -> float:
    return a / b if b else 1.0 if a == b else float("inf")


def _verdict(low: float, high: float, old: Spread, new: Spread, other_machine: bool) -> Verdict:
    if other_machine:
        return "other machine"
    if min(old.repeats, new.repeats) < FEWEST:
        return "too few repeats"
    return "LOSS" if high < 1 else "gain" if low > 1 else "within the spread"


def lost(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.verdict == "LOSS"]


def table(changes: Sequence[Change]) -> str:
    """Formats the changes as lines of text."""
    width = max((len(change.title) for change in changes), default=0)
    lines = [f"{'figure':<{width}}  {'first':>12} {'second':>12}  times better (interval)"]
    for c in changes:
        interval = f"{c.factor:.3g} ({c.low:.3g} to {c.high:.3g})"
        lines.append(
            f"{c.title:<{width}}  {c.first:>12.5g} {c.second:>12.5g}  {interval:<26} {c.verdict}"
        )
    return "\n".join(lines)
