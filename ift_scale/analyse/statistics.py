"""The statistics of the report, as pure functions of arrays.

Notation: Q questions, S seeds, C options. Levels such as 0.95 are two-sided.
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


def dense_ranks(probs_QC: np.ndarray) -> np.ndarray:
    """Rank of each option by falling probability, from 1, equal probabilities sharing a rank; shape (Q, C)."""
    return np.stack([stats.rankdata(-row, method="dense") for row in probs_QC]) if len(probs_QC) else probs_QC


def rank_pearson(before: np.ndarray, after: np.ndarray) -> float:
    """Pearson correlation of the options' ranks of one question, shapes (C,); 0 where it is undefined, as in the paper."""
    a, b = dense_ranks(before[None])[0], dense_ranks(after[None])[0]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def kl_divergence(before: np.ndarray, after: np.ndarray) -> float:
    """KL(before || after) of one question's option distributions, in nats, shapes (C,)."""
    return float(stats.entropy(before, after))


def two_way_bootstrap(tables_SQ: Sequence[np.ndarray], samples: int, level: float, seed: int) -> Interval:
    """Mean over tables of the mean of each (S, Q) table, with a percentile interval over seeds and questions.

    Each table is a domain's values (accuracies, or paired differences). A sample redraws the seeds, the same for all domains,
    and within each domain the questions, and averages the domains with equal weight (Owen 2007, the pigeonhole bootstrap). One
    seed alone is not redrawn: the interval then speaks of questions only.
    """
    rng = np.random.default_rng(seed)
    num_seeds = tables_SQ[0].shape[0]
    assert all(table.shape[0] == num_seeds and table.size for table in tables_SQ)
    seed_weights = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=samples) / num_seeds
    means = np.zeros(samples)
    for table in tables_SQ:
        num_questions = table.shape[1]
        # By counts rather than by indices: one matrix product a table instead of a gather a sample.
        question_weights = rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=samples)
        means += np.einsum("bs,sq,bq->b", seed_weights, table, question_weights / num_questions, optimize=True)
    means /= len(tables_SQ)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean([table.mean() for table in tables_SQ])), float(low), float(high))
