"""Intervals of accuracies and of paired differences, as pure functions of arrays.

Notation: S seeds, Q questions, B bootstrap samples, U questions of all domains together. Levels such as 0.95 are two-sided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

_CHUNK = 250
"""Samples that are drawn or multiplied at once: their counts are the largest array there is."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its lower and upper confidence limits."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def columns(self, name: str) -> dict[str, float]:
        """As three columns of a table."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def wilson(num_right: int, num: int, level: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), by scipy."""
    interval = scipy.stats.binomtest(num_right, num).proportion_ci(level, method="wilson")
    return Interval(num_right / num, float(interval.low), float(interval.high))


def of_share(drawn: "Bootstrap", num: int, level: float) -> Interval:
    """Interval of a share of right answers to `num` questions; Wilson's where all or none are right: no sample varies then."""
    if drawn.value in (0.0, 1.0):
        return wilson(num if drawn.value else 0, num, level)
    return drawn.interval(level)


@dataclass(frozen=True)
class Table:
    """Values of one domain: `values` of shape (S, Q), and the Q questions' ids (one question may be asked in several domains).

    A value that is not there is NaN: a question without options has no rank correlation, a refused one no given answer.
    """

    values: np.ndarray
    questions: Sequence[str]


@dataclass(frozen=True)
class Bootstrap:
    """Estimate and bootstrap samples of a mean: over seeds and questions (`both_B`), and over questions alone (`questions_B`)."""

    value: float
    both_B: np.ndarray
    questions_B: np.ndarray

    def interval(self, level: float) -> Interval:
        """Percentile interval over seeds and questions."""
        return _percentiles(self.value, self.both_B, level)

    def over_questions(self, level: float) -> Interval:
        """Percentile interval over questions: it speaks of these seeds only."""
        return _percentiles(self.value, self.questions_B, level)

    @property
    def standard_error(self) -> float:
        return float(self.both_B.std(ddof=1))


def _percentiles(value: float, samples_B: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(samples_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


class Resamples:
    """How often each question is drawn in each sample, drawn once and used for every mean: the same in all settings and domains.

    A question that several domains ask is one question. Questions are drawn within strata, those that the same domains ask, so that
    a domain has as many in every sample: domains are fixed, their questions are not.
    """

    def __init__(self, questions: Mapping[str, Sequence[str]], samples: int, seed: int):
        """`questions`: of each domain, the ids."""
        self.samples, self.seed = samples, seed
        number: dict[str, int] = {}
        self._weights: dict[int, np.ndarray] = {}
        self._places = {d: np.array([number.setdefault(q, len(number)) for q in ids]) for d, ids in questions.items()}
        asked_DU = np.zeros((len(questions), len(number)), dtype=bool)
        for row, places in zip(asked_DU, self._places.values(), strict=True):
            row[places] = True
        self._counts_BU = np.empty((samples, len(number)), dtype=np.uint8)
        rng = np.random.default_rng(seed)
        _, strata_U = np.unique(asked_DU, axis=1, return_inverse=True)
        for stratum in range(strata_U.max() + 1):
            members = np.flatnonzero(strata_U == stratum)
            for start in range(0, samples, _CHUNK):
                rows = min(_CHUNK, samples - start)
                self._counts_BU[start : start + rows, members] = _draw(rng, rows, len(members))

    def draw(self, domain: str, values_RQ: np.ndarray, among_Q: np.ndarray | None = None) -> "Drawn":
        """Means of R rows of a domain's values over the drawn questions that have one; `among_Q`: over these questions only.

        A sample that has none of a row's questions says nothing about it: the row's own mean stands in.
        """
        places = self._places[domain]
        if among_Q is not None:
            values_RQ, places = values_RQ[:, among_Q], places[among_Q]
        there_RQ = np.isfinite(values_RQ)
        whole = bool(there_RQ.all())
        filled_RQ, there_RQ = np.where(there_RQ, values_RQ, 0.0), there_RQ.astype(np.float64)
        own_R = _ratio(filled_RQ.sum(1), there_RQ.sum(1), np.nan)
        samples_RB = np.empty((len(values_RQ), self.samples))
        for start in range(0, self.samples, _CHUNK):
            counts_QB = self._counts_BU[start : start + _CHUNK, places].T.astype(np.float64)
            drawn = np.broadcast_to(counts_QB.sum(0), (len(own_R), counts_QB.shape[1])) if whole else there_RQ @ counts_QB
            samples_RB[:, start : start + _CHUNK] = _ratio(filled_RQ @ counts_QB, drawn, own_R[:, None])
        return Drawn(own_R, samples_RB)

    def seed_weights(self, num_seeds: int) -> np.ndarray:
        """Weight of each seed in each sample, shape (B, S): S - 1 of the S are drawn, one seed alone is always there.

        Drawing S of S would make the variance over seeds too small by (S - 1) / S, a third with three seeds; drawing S - 1 mends it
        (McCarthy and Snowden 1985; Rao and Wu 1988).
        """
        if num_seeds == 1:
            return np.ones((self.samples, 1))
        if num_seeds not in self._weights:
            rng = np.random.default_rng([self.seed, num_seeds])
            drawn_BS = rng.multinomial(num_seeds - 1, np.full(num_seeds, 1 / num_seeds), size=self.samples)
            self._weights[num_seeds] = drawn_BS / (num_seeds - 1)
        return self._weights[num_seeds]

    def combine(self, domains: Sequence["Drawn"]) -> Bootstrap | None:
        """The mean over domains of their means over seeds; a row a seed.

        A seed without any value is left out, and so is a domain without one; None where nothing is left.
        """
        there = [rows for domain in domains if len((rows := domain.of(np.isfinite(domain.own_R))).own_R)]
        if not there:
            return None
        both = [np.einsum("bs,sb->b", self.seed_weights(len(rows.own_R)), rows.samples_RB) for rows in there]
        over_questions = [rows.samples_RB.mean(0) for rows in there]
        value = float(np.mean([rows.own_R.mean() for rows in there]))
        return Bootstrap(value, np.mean(both, axis=0), np.mean(over_questions, axis=0))


@dataclass(frozen=True)
class Drawn:
    """Means of R rows of values: of all their questions, and of each sample's; NaN where a row has no value."""

    own_R: np.ndarray
    samples_RB: np.ndarray

    def of(self, rows: np.ndarray | list[int]) -> "Drawn":
        return Drawn(self.own_R[rows], self.samples_RB[rows])

    def __sub__(self, other: "Drawn") -> "Drawn":
        """Paired differences: both are of the same questions, row by row."""
        return Drawn(self.own_R - other.own_R, self.samples_RB - other.samples_RB)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """Quotient, `otherwise` where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), otherwise)


def _draw(rng: np.random.Generator, samples: int, num: int) -> np.ndarray:
    """How often each of `num` is drawn in `num` draws, for each sample, shape (samples, num)."""
    drawn = rng.integers(0, num, size=(samples, num)) + np.arange(samples)[:, None] * num
    return np.bincount(drawn.ravel(), minlength=samples * num).reshape(samples, num)


def two_way_bootstrap(tables: Sequence[Table], samples: int, level: float, seed: int) -> Interval:
    """Mean over tables of each table's mean, with a percentile interval over seeds and questions.

    Each table is a domain's values (accuracies, or paired differences). A sample redraws the seeds and the questions, both the
    same for all domains, and averages the domains with equal weight (Owen 2007, the pigeonhole bootstrap). One seed alone is
    not redrawn: the interval then speaks of questions only.
    """
    return _bootstrap(tables, samples, seed).interval(level)


def question_bootstrap(tables: Sequence[Table], samples: int, level: float, seed: int) -> Interval:
    """The same mean, with a percentile interval over questions alone: what these very seeds would give on other questions."""
    return _bootstrap(tables, samples, seed).over_questions(level)


def _bootstrap(tables: Sequence[Table], samples: int, seed: int) -> Bootstrap:
    resamples = Resamples({str(i): table.questions for i, table in enumerate(tables)}, samples, seed)
    found = resamples.combine([resamples.draw(str(i), table.values) for i, table in enumerate(tables)])
    assert found is not None, "tables without a value"
    return found
