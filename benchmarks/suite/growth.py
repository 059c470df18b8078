"""Growth of a cost: slopes over sizes, mostly of logarithms, with 95% intervals. Pure functions."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.suite.rows import Row


@dataclass(frozen=True)
class Fit:
    """cost = factor * size ** slope, with the slope's 95% interval (None with only two sizes)."""

    slope: float
    factor: float
    low: float | None
    high: float | None

    def at(self, size: float) -> float:
        return self.factor * size**self.slope


@dataclass(frozen=True)
class Series:
    """Rows of one program's figure that differ in one size only, in order of that size."""

    name: str
    size: str
    rows: tuple[Row, ...]

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(row.at[self.size], row.value) for row in self.rows]


def series(rows: Sequence[Row]) -> list[Series]:
    """Returns all series with two sizes or more, in order of appearance."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if len(row.at) == 1:
            found.setdefault(
                (row.case, row.who, row.quantity, row.unit, row.device, *row.at), []
            ).append(row)
    return [
        Series(" | ".join(key[:3]), key[-1], tuple(sorted(group, key=lambda r: r.at[key[-1]])))
        for key, group in found.items()
        if len({row.at[key[-1]] for row in group}) > 1
    ]


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """Fits log cost over log size by least squares; None without two sizes.

    The interval uses Student's t.
    """
    logs = [(math.log(size), math.log(cost)) for size, cost in points if size > 0 and cost > 0]
    if len({size for size, _ in logs}) < 2:
        return None
    sizes, costs = zip(*logs, strict=True)
    slope, intercept, reach = _line(sizes, costs)
    if reach is None:
        return Fit(slope, math.exp(intercept), None, None)
    return Fit(slope, math.exp(intercept), slope - reach, slope + reach)


def growth_between(
    points: Sequence[tuple[float, float]], start: float, end: float
) -> tuple[float, float, float]:
    """Returns by how much y grows from x = `start` to `end` on a straight line: value, low, high.

    `points`: at least three (x, y). The 95% interval uses Student's t and takes the points as
    independent; give means over many samples.
    """
    slope, _, reach = _line(*zip(*points, strict=True))
    assert reach is not None
    span = end - start
    return slope * span, (slope - reach) * span, (slope + reach) * span


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float | None]:
    """Returns slope and intercept by least squares, and half the slope's 95% interval.

    The latter is None for two points.
    """
    slope, intercept = statistics.linear_regression(xs, ys)
    freedom = len(xs) - 2
    if freedom < 1:
        return slope, intercept, None
    variance = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True)) / freedom
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(
        variance / (statistics.pvariance(xs) * len(xs))
    )
    return slope, intercept, reach
