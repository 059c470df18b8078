"""Intervals of accuracies and of paired differences, as pure functions of arrays.

An estimate is the mean over domains of the mean over seeds and questions. Two things could have come out differently, and each
contributes its own half-width; the two add in quadrature (Banerjee 1960; `Estimate.half_width`):

- other seeds: the variance of the seeds' means over domains, with Student's t of S - 1 degrees of freedom. Seeds of the same number
  are one draw in all domains, so effects that a seed has on all of them are included;
- other questions: the variance of the questions' means over seeds, less the part that the seeds' means contain already.

With one seed nothing is known about other seeds: `Estimate.interval` is None, and `Estimate.over_questions` is about these very
models only.

Levels such as 0.95 are two-sided; S is the number of seeds. The variances are computed in `estimates`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy


@dataclass(frozen=True)
class Interval:
    """An estimate with its lower and upper confidence limits."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def columns(name: str, value: float | None, interval: Interval | None) -> dict[str, Any]:
    """A value and its limits as three columns of a table; there may be no interval."""
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def wilson(num_right: int, num: int, level: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), by scipy."""
    interval = scipy.stats.binomtest(num_right, num).proportion_ci(level, method="wilson")
    return Interval(num_right / num, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Measure:
    """The range of a question's value, and pseudo-questions as (value, weight): they keep the interval honest where few questions
    or none vary. With m domains each gets 1/m of the weights."""

    least: float
    most: float
    pseudo: tuple[tuple[float, float], ...] = ()
    fewest: int = 10
    """Questions of a domain below which no interval is given, since it would not cover (tests/analyse/test_coverage.py)."""

    @property
    def weight(self) -> float:
        return sum(weight for _, weight in self.pseudo)

    @property
    def middle(self) -> float:
        return (
            sum(value * weight for value, weight in self.pseudo) / self.weight
            if self.pseudo
            else 0.0
        )

    def clip(self, value: float) -> float:
        return min(max(value, self.least), self.most)


SHARE = Measure(0, 1, ((0, 2), (1, 2)))
"""Right or wrong. Two successes and two failures (Agresti and Coull 1998), 2/m of each with m domains (Price and Bonett 2004)."""
DIFFERENCE = Measure(-1, 1, ((-1, 0.5), (0, 1), (1, 0.5)))
"""Paired difference of two shares: half a question in each of the four cells (Agresti and Min 2005)."""
CORRELATION = Measure(-1, 1, ((-1, 0.5), (0, 1), (1, 0.5)))
UNBOUNDED = Measure(0, np.inf, fewest=50)
"""A divergence: not negative, without an upper end, and skewed, so that it takes more questions."""


@dataclass(frozen=True)
class Estimate:
    """A mean over domains, and the variances that its intervals are made of."""

    measure: Measure
    value: float
    centre: float
    """The value with the pseudo-questions: the middle of the interval."""
    domains: int
    seeds: int
    """Of the domain that has the fewest."""
    fewest_questions: int
    """Of the domain that has the fewest."""
    seed_variance: float
    """Squared standard error over seeds, what varies between one question's answers included; NaN with one seed."""
    question_variance: float
    """Squared standard error over questions, without what `seed_variance` includes."""
    own_variance: float
    """Squared standard error over questions for these very seeds."""

    @property
    def standard_error(self) -> float:
        """Over seeds and questions; NaN with one seed."""
        return float(np.sqrt(self.seed_variance + self.question_variance))

    @property
    def missing(self) -> str:
        """Why there is no interval over seeds and questions; empty where there is one."""
        return self.missing_over_questions or (ONE_SEED if self.seeds == 1 else "")

    @property
    def missing_over_questions(self) -> str:
        if self.fewest_questions < self.measure.fewest:
            return f"no interval: a domain has fewer than {self.measure.fewest} questions"
        return "" if self.own_variance > 0 else NO_VARIATION

    def half_width(self, level: float) -> float:
        """sqrt(t^2 seed_variance + z^2 question_variance): covers at least `level` whatever the true variances (Banerjee 1960)."""
        t, z = (
            scipy.stats.t.ppf((1 + level) / 2, self.seeds - 1),
            scipy.stats.norm.ppf((1 + level) / 2),
        )
        return float(np.sqrt(t**2 * self.seed_variance + z**2 * self.question_variance))

    def interval(self, level: float) -> Interval | None:
        """Over seeds and questions; None with one seed or too few questions (`missing` gives the reason)."""
        return None if self.missing else self._around(self.half_width(level))

    def over_questions(self, level: float) -> Interval | None:
        """Over questions alone: what these very models would give on other questions."""
        z = scipy.stats.norm.ppf((1 + level) / 2)
        return None if self.missing_over_questions else self._around(z * self.own_variance**0.5)

    def shown(self, level: float) -> Interval | None:
        """The interval of a mean in a table: over seeds and questions, with one seed over questions alone."""
        return self.over_questions(level) if self.seeds == 1 else self.interval(level)

    def p_value(self) -> float | None:
        """The least p at which the interval of level 1 - p leaves zero out; None where there is no interval."""
        if self.missing:
            return None
        if self.centre == 0:
            return 1.0
        least = 1e-12
        if self.half_width(1 - least) < abs(self.centre):
            return least
        return float(
            scipy.optimize.brentq(
                lambda p: self.half_width(1 - p) - abs(self.centre), least, 1, xtol=1e-14
            )
        )

    def _around(self, half_width: float) -> Interval:
        low, high = (self.measure.clip(self.centre + side * float(half_width)) for side in (-1, 1))
        return Interval(self.value, min(low, self.value), max(high, self.value))


def mean_columns(name: str, made: Estimate | None, level: float) -> dict[str, Any]:
    """The three columns of a mean, empty where there is none."""
    return columns(name, made.value, made.shown(level)) if made else columns(name, None, None)


ONE_SEED = "one seed: no interval over seeds"
NO_VARIATION = "no interval: nothing varies"
