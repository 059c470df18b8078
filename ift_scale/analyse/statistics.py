"""The statistics of the report, as pure functions of arrays.

Notation: Q questions, S seeds. Levels such as 0.95 are two-sided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its lower and upper confidence limits."""

    value: float
    low: float
    high: float


def wilson(num_right: int, num: int, level: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), by scipy."""
    interval = stats.binomtest(num_right, num).proportion_ci(level, method="wilson")
    return Interval(num_right / num, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Table:
    """Values of one domain: `values` of shape (S, Q), and the Q questions' ids (one question may be asked in several domains)."""

    values: np.ndarray
    questions: Sequence[str]


def two_way_bootstrap(tables: Sequence[Table], samples: int, level: float, seed: int) -> Interval:
    """Mean over tables of each table's mean, with a percentile interval over seeds and questions.

    Each table is a domain's values (accuracies, or paired differences). A sample redraws the seeds and the questions, both the
    same for all domains, and averages the domains with equal weight (Owen 2007, the pigeonhole bootstrap). One seed alone is
    not redrawn: the interval then speaks of questions only.
    """
    rng = np.random.default_rng(seed)
    num_seeds = tables[0].values.shape[0]
    assert all(table.values.shape == (num_seeds, len(table.questions)) for table in tables)
    number = {question: i for i, question in enumerate(dict.fromkeys(q for table in tables for q in table.questions))}
    # By counts rather than by indices: one matrix product a table instead of a gather a sample.
    seed_counts_BS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=samples)
    question_counts_BU = rng.multinomial(len(number), np.full(len(number), 1 / len(number)), size=samples)
    means_B = np.zeros(samples)
    for table in tables:
        counts_BQ = question_counts_BU[:, [number[q] for q in table.questions]]
        drawn_B = counts_BQ.sum(axis=1)
        # A sample that has none of a small table's questions says nothing about it: the table's own mean stands in.
        sums_B = np.einsum("bs,sq,bq->b", seed_counts_BS / num_seeds, table.values, counts_BQ, optimize=True)
        means_B += np.where(drawn_B > 0, sums_B / np.maximum(drawn_B, 1), table.values.mean())
    means_B /= len(tables)
    low, high = np.quantile(means_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean([table.values.mean() for table in tables])), float(low), float(high))
