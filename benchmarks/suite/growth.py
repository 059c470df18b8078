"""How a cost grows: the slope of its logarithm over the logarithm of a size, with a 95% interval. Pure functions over rows."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.suite.rows import Row


@dataclass(frozen=True)
class Fit:
    """cost = factor * size ** slope. `low` and `high`: 95% interval of the slope, None with two sizes, which any line meets."""

    slope: float
    factor: float
    low: float | None
    high: float | None

    def at(self, size: float) -> float:
        return self.factor * size**self.slope


@dataclass(frozen=True)
class Series:
    """Rows of one program's figure that differ in one size alone, by that size."""

    name: str
    size: str
    rows: tuple[Row, ...]

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(row.at[self.size], row.value) for row in self.rows]


def series(rows: Sequence[Row]) -> list[Series]:
    """All that have two sizes or more, in the order in which they come."""
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
    """Least squares of log cost over log size, with Student's t for the interval; None where there is no line."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points if size > 0 and cost > 0]
    if len({size for size, _ in logs}) < 2:
        return None
    sizes, costs = zip(*logs, strict=True)
    slope, intercept = statistics.linear_regression(sizes, costs)
    if len(logs) < 3:
        return Fit(slope, math.exp(intercept), None, None)
    freedom = len(logs) - 2
    left = sum((y - intercept - slope * x) ** 2 for x, y in logs) / freedom
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(
        left / (statistics.pvariance(sizes) * len(sizes))
    )
    return Fit(slope, math.exp(intercept), slope - reach, slope + reach)
