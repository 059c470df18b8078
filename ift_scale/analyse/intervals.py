"""Intervals of accuracies and of paired differences, as pure functions of arrays.

An estimate is the mean over domains of the mean over seeds and questions. Its variance is the sum
of two parts:

- seeds: the variance of the seeds' means over domains. A seed number denotes the same draw in all
  domains, so effects of a seed on all of them are included;
- questions: the variance of the questions' means over seeds, minus the part that the seeds' means
  already contain.

The interval is Student's, with degrees of freedom between those of the seeds (if only the seeds
vary) and infinity (if only the questions do); see `Estimate.half_width`.

With one seed the variation over seeds is unknown: `Estimate.interval` is None, and
`Estimate.over_questions` is about these trained models only.

Levels such as 0.95 are two-sided; S is the number of seeds. The variances are computed in
`estimates`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def columns(name: str, value: float | None, interval: Interval | None) -> dict[str, Any]:
    """Returns a value and its limits as three columns of a table; limits are None if missing."""
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def wilson(num_right: int, num: int, level: float) -> Interval:
    """Returns Wilson's score interval of a proportion (Wilson 1927), computed by scipy."""
    interval = scipy.stats.binomtest(num_right, num).proportion_ci(level, method="wilson")
    return Interval(num_right / num, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Measure:
    """The range of a question's value, and pseudo-questions as (value, weight).

    Pseudo-questions keep the coverage if few or no questions vary. With m domains, each domain gets
    1/m of the weights.
    """

    least: float
    most: float
    pseudo: tuple[tuple[float, float], ...] = ()
    fewest: int = 10
    """Minimum questions per domain; with fewer, intervals do not reach their coverage
    (tests/analyse/test_coverage.py)."""

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
"""Right or wrong. Two successes and two failures (Agresti and Coull 1998), 2/m of each with m
domains (Price and Bonett 2004)."""
DIFFERENCE = Measure(-1, 1, ((-1, 0.5), (0, 1), (1, 0.5)))
"""Paired difference of two shares: half a question in each of the four cells (Agresti and Min
2005)."""
CORRELATION = Measure(-1, 1, ((-1, 0.5), (0, 1), (1, 0.5)))
UNBOUNDED = Measure(0, np.inf, fewest=50)
"""A divergence: not negative, unbounded and skewed, so it requires more questions."""


@dataclass(frozen=True)
class Estimate:
    """A mean over domains, and the variances for its intervals."""

    measure: Measure
    value: float
    centre: float
    """The value including pseudo-questions: the middle of the interval."""
    domains: int
    seeds: int
    """Seeds of the domain with the fewest."""
    fewest_questions: int
    """Questions of the domain with the fewest."""
    seed_variance: float
    """Squared standard error over seeds, including variation between answers to one question; NaN
    with one seed."""
    seed_freedom: float
    """Degrees of freedom of `seed_variance`: seeds - 1, or more if domains have different seeds."""
    question_variance: float
    """Squared standard error over questions, without the part included in `seed_variance`."""
    own_variance: float
    """Squared standard error over questions for these seeds."""

    @property
    def standard_error(self) -> float:
        """Standard error over seeds and questions; NaN with one seed."""
        return float(np.sqrt(self.seed_variance + self.question_variance))

    @property
    def missing(self) -> str:
        """The reason why there is no interval over seeds and questions; empty if there is one."""
        return self.missing_over_questions or (ONE_SEED if self.seeds == 1 else "")

    @property
    def missing_over_questions(self) -> str:
        """The reason why there is no interval over questions; empty if there is one."""
        if self.fewest_questions < self.measure.fewest:
            return f"no interval: a domain has fewer than {self.measure.fewest} questions"
        return "" if self.own_variance > 0 else NO_VARIATION

    def half_width(self, level: float) -> float:
        """Returns the quantile of Student's t times the standard error over seeds and questions.

        With w the seeds' share of the variance, the degrees of freedom are seed_freedom / w.
        Satterthwaite's (1946), seed_freedom / w^2, are too many because w is itself estimated from
        few seeds. With two seeds the quantile is w t + (1 - w) z, t with one degree of freedom
        (Cochran and Cox 1950): t falls too fast with its degrees of freedom there. Coverage of all
        three: docs/intervals.md. Other seeds only add variation, so the half-width is at least that
        over questions.
        """
        upper = (1 + level) / 2
        z = scipy.special.ndtri(upper)
        variance, own = self.seed_variance + self.question_variance, z * self.own_variance**0.5
        share = self.seed_variance / variance if variance else 0.0
        if share == 0:
            quantile = z
        elif self.seed_freedom < 2:
            quantile = share * scipy.special.stdtrit(self.seed_freedom, upper) + (1 - share) * z
        else:
            quantile = scipy.special.stdtrit(self.seed_freedom / share, upper)
        return float(max(quantile * variance**0.5, own))

    def interval(self, level: float) -> Interval | None:
        """Returns the interval over seeds and questions; None if undefined (see `missing`)."""
        return None if self.missing else self._around(self.half_width(level))

    def over_questions(self, level: float) -> Interval | None:
        """Returns the interval over questions only: these models, other questions."""
        z = scipy.special.ndtri((1 + level) / 2)
        return None if self.missing_over_questions else self._around(z * self.own_variance**0.5)

    def shown(self, level: float) -> Interval | None:
        """Returns the interval for a table: with one seed it is over questions only."""
        return self.over_questions(level) if self.seeds == 1 else self.interval(level)

    def p_value(self) -> float | None:
        """Returns the smallest p at which the interval of level 1 - p excludes zero, or None."""
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
    """Returns the three columns of a mean; None if missing."""
    return columns(name, made.value, made.shown(level)) if made else columns(name, None, None)


ONE_SEED = "one seed: no interval over seeds"
NO_VARIATION = "no interval: nothing varies"
