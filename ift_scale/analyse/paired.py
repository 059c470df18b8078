"""Tests of paired answers, and the correction for multiple tests. Pure functions.

statsmodels is imported inside the functions: every command imports this module, few run a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_EXACT_BELOW = 25


@dataclass(frozen=True)
class Discordant:
    """Counts of pairs: those that only the first answer has right, only the second, and all."""

    first: int
    second: int
    pairs: int

    @property
    def share(self) -> float:
        return (self.first + self.second) / self.pairs


def mcnemar(counts: Discordant) -> float:
    """Returns the two-sided p value of McNemar's test (1947), by statsmodels; 1 if no pair differs.

    Exact (binomial) below 25 differing pairs, else chi-square without continuity correction, whose
    size is closer to the level than the exact test's (Fagerland, Lydersen and Laake 2013).
    """
    differing = counts.first + counts.second
    if differing == 0:
        return 1.0
    from statsmodels.stats import contingency_tables

    table = [[0, counts.first], [counts.second, 0]]
    return float(
        contingency_tables.mcnemar(table, exact=differing < _EXACT_BELOW, correction=False).pvalue
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the adjusted p values of one family of tests (Holm 1979), by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def majority(right_AQ: np.ndarray) -> np.ndarray:
    """Returns 1 if most of a question's A answers are right, else 0; NaN on a tie. Shape (Q,)."""
    there_Q = np.isfinite(right_AQ).sum(0)
    twice_Q = 2 * np.nansum(right_AQ, axis=0)
    return np.where(twice_Q == there_Q, np.nan, (twice_Q > there_Q).astype(float))


def discordant(first_AQ: np.ndarray, second_AQ: np.ndarray) -> Discordant:
    """Returns the pairs for McNemar's test: each question once, by its majority over seeds.

    Ties are dropped. Seeds answer the same questions, so seeds x questions are not independent
    pairs, and a test of them would reject too often.
    """
    first_Q, second_Q = majority(first_AQ), majority(second_AQ)
    pairs = np.isfinite(first_Q) & np.isfinite(second_Q)
    return Discordant(
        int((first_Q > second_Q).sum()), int((first_Q < second_Q).sum()), int(pairs.sum())
    )
