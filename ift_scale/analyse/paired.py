"""Tests of paired answers, and the correction where many are made. Pure functions.

statsmodels is imported where it is called: every command imports this module, and few of them test anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_EXACT_BELOW = 25


@dataclass(frozen=True)
class Discordant:
    """Pairs whose two answers differ: `first` of them only the first has right, `second` only the second; `pairs` of any kind."""

    first: int
    second: int
    pairs: int

    @property
    def share(self) -> float:
        return (self.first + self.second) / self.pairs


def mcnemar(found: Discordant) -> float:
    """Two-sided p value of McNemar's test (1947), by statsmodels; 1 where no pair differs.

    Exact (binomial) below 25 differing pairs, else chi-square without continuity correction, whose size is nearer to its level than
    the exact test's (Fagerland, Lydersen and Laake 2013).
    """
    differing = found.first + found.second
    if differing == 0:
        return 1.0
    from statsmodels.stats import contingency_tables

    table = [[0, found.first], [found.second, 0]]
    return float(
        contingency_tables.mcnemar(table, exact=differing < _EXACT_BELOW, correction=False).pvalue
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of one family of tests (Holm 1979), by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def majority(right_AQ: np.ndarray) -> np.ndarray:
    """Whether most of a question's A answers are right, shape (Q,): 1 or 0, NaN where they tie or there are none."""
    there_Q = np.isfinite(right_AQ).sum(0)
    twice_Q = 2 * np.nansum(right_AQ, axis=0)
    return np.where(twice_Q == there_Q, np.nan, (twice_Q > there_Q).astype(float))


def discordant(first_AQ: np.ndarray, second_AQ: np.ndarray) -> Discordant:
    """The pairs that McNemar's test takes: each question once, by the majority of its answers over seeds; ties are dropped.

    Seeds answer the same questions, so seeds x questions are no independent pairs, and a test of them would find too much.
    """
    first_Q, second_Q = majority(first_AQ), majority(second_AQ)
    pairs = np.isfinite(first_Q) & np.isfinite(second_Q)
    return Discordant(
        int((first_Q > second_Q).sum()), int((first_Q < second_Q).sum()), int(pairs.sum())
    )
