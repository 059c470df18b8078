"""Two runs side by side: what is called a loss, and what is not."""

from typing import Any

import pytest

from benchmarks.suite.compare import compare, load, lost
from benchmarks.suite.rows import Better, Gate, Row, Sheet, ratios
from ift_scale.errors import DataError


def run(
    samples: list[float], better: Better = "lower", peer: list[float] | None = None, **changes: Any
) -> list[Row]:
    sheet = Sheet("train", True)
    found = ratios(samples, {"TRL": peer} if peer else {}, better)
    sheet.add(
        "float32", "seconds", "s", samples, Gate(checked="equal"), better=better, ratios=found
    )
    return [row.model_copy(update=changes) for row in sheet.rows]


@pytest.mark.parametrize(
    ("first", "second", "better", "verdict"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], "lower", "LOSS"),
        ([1.0, 1.1, 1.2], [1.15, 1.3, 1.4], "lower", "within the spread"),
        ([1.3, 1.4, 1.5], [1.0, 1.1, 1.2], "lower", "gain"),
        ([10.0, 11.0, 12.0], [7.0, 8.0, 9.0], "higher", "LOSS"),
        ([10.0, 11.0, 12.0], [13.0, 14.0, 15.0], "higher", "gain"),
        ([1.0, 1.0], [9.0, 9.0], "lower", "too few repeats"),
        ([5.0], [5.0], "neither", "same"),
        ([5.0], [6.0], "neither", "CHANGED"),
    ],
)
def test_a_loss_is_beyond_all_that_was_seen(
    first: list[float], second: list[float], better: Better, verdict: str
) -> None:
    (change,) = compare(run(first, better), run(second, better))
    assert change.verdict == verdict
    assert change.low <= change.factor <= change.high


def test_another_machines_seconds_are_not_judged_but_its_ratios_are() -> None:
    """Seconds twice as long on a slower machine, and the lead over the peer halved."""
    before = run([1.0, 1.0, 1.0], peer=[4.0, 4.0, 4.0])
    after = run([2.0, 2.0, 2.0], peer=[4.0, 4.0, 4.0], machine="another")
    seconds, ratio = compare(before, after)
    assert seconds.verdict == "other machine"
    assert (ratio.verdict, ratio.factor) == ("LOSS", 0.5)
    assert lost([seconds, ratio]) == [ratio]


def test_figures_of_one_run_alone_are_left_out() -> None:
    assert compare(run([1.0]), run([1.0], case="bfloat16")) == []


def test_what_is_neither_file_nor_revision_is_told() -> None:
    with pytest.raises(DataError, match="neither a file nor a folder nor a git revision"):
        load("no-such-revision")
