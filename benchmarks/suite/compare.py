"""Two stored runs side by side: for every figure that both have, how many times better the second is, with an interval.

The interval goes from the worst of the second's repeats over the best of the first's to the other way round, so a difference that
is beyond it is beyond all that was seen of both. Seconds and rates of different machines are told, never judged: only ratios to a
peer, taken in one run, and counts can be.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.suite.registry import CHECKOUT
from benchmarks.suite.rows import Better, Row, Spread, read
from ift_scale.errors import DataError, Place

FEWEST = 3
"""Repeats below which a spread says nothing."""
Verdict = Literal[
    "gain", "LOSS", "within the spread", "too few repeats", "other machine", "same", "CHANGED"
]
_FOLDER = "benchmarks/results"


@dataclass(frozen=True)
class Change:
    """`factor`: how many times better the second is (where neither way is better: the second over the first)."""

    title: str
    unit: str
    first: float
    second: float
    factor: float
    low: float
    high: float
    verdict: Verdict


def load(name: str) -> list[Row]:
    """The rows of a file, of a folder of files, or of what a git revision has stored; DataError where there are none."""
    path = Path(name)
    found = read(path) if path.exists() else _of_revision(name)
    if not found:
        raise DataError(
            Place(name),
            "holds no benchmark rows",
            "Give a file or folder of rows, or a revision that has stored some",
        )
    return found


def _of_revision(revision: str) -> list[Row]:
    listed = _git("ls-tree", "--name-only", revision, f"{_FOLDER}/")
    if listed is None:
        remedy = "Give a file or folder of rows, or a revision of this checkout"
        raise DataError(
            Place(revision), "is neither a file nor a folder nor a git revision", remedy
        )
    texts = [
        _git("show", f"{revision}:{path}") or ""
        for path in listed.split()
        if path.endswith(".jsonl")
    ]
    return [Row.model_validate_json(line) for text in texts for line in text.splitlines()]


def _git(*arguments: str) -> str | None:
    ended = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True)
    return ended.stdout if ended.returncode == 0 else None


def compare(first: Sequence[Row], second: Sequence[Row]) -> list[Change]:
    """Of every figure in both, and of every ratio to a peer in both."""
    before = {row.key: row for row in first}
    found = []
    for row in second:
        old = before.get(row.key)
        if old is None:
            continue
        elsewhere = (old.machine, old.device) != (row.machine, row.device)
        found.append(_change(row.title, row.unit, old, row, row.better, elsewhere))
        for peer in old.ratios.keys() & row.ratios.keys():
            found.append(
                _change(
                    f"{row.title} | against {peer}",
                    "times",
                    old.ratios[peer],
                    row.ratios[peer],
                    "higher",
                    False,
                )
            )
    return found


def _change(
    title: str, unit: str, old: Spread, new: Spread, better: Better, elsewhere: bool
) -> Change:
    if better == "neither":
        factor = _over(new.value, old.value)
        return Change(
            title,
            unit,
            old.value,
            new.value,
            factor,
            factor,
            factor,
            "same" if old.value == new.value else "CHANGED",
        )
    numbers = (new.value, new.low, new.high), (old.value, old.high, old.low)
    if better == "lower":
        numbers = (old.value, old.low, old.high), (new.value, new.high, new.low)
    factor, low, high = (_over(a, b) for a, b in zip(*numbers, strict=True))
    return Change(
        title,
        unit,
        old.value,
        new.value,
        factor,
        low,
        high,
        _verdict(low, high, old, new, elsewhere),
    )


def _over(a: float, b: float) -> float:
    return a / b if b else 1.0 if a == b else float("inf")


def _verdict(low: float, high: float, old: Spread, new: Spread, elsewhere: bool) -> Verdict:
    if elsewhere:
        return "other machine"
    if min(old.repeats, new.repeats) < FEWEST:
        return "too few repeats"
    return "LOSS" if high < 1 else "gain" if low > 1 else "within the spread"


def lost(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.verdict == "LOSS"]


def table(changes: Sequence[Change]) -> str:
    """The changes as lines of text."""
    width = max((len(change.title) for change in changes), default=0)
    lines = [f"{'figure':<{width}}  {'first':>12} {'second':>12}  times better (interval)"]
    for c in changes:
        interval = f"{c.factor:.3g} ({c.low:.3g} to {c.high:.3g})"
        lines.append(
            f"{c.title:<{width}}  {c.first:>12.5g} {c.second:>12.5g}  {interval:<26} {c.verdict}"
        )
    return "\n".join(lines)
