"""Agreement of option distributions against scipy."""

import numpy as np
import pytest
from scipy import stats

from ift_scale.scoring.agreement import dense_ranks, kl_divergence, rank_pearson


def test_ranks_share_ties_as_in_the_papers_code() -> None:
    assert dense_ranks(np.array([[0.4, 0.1, 0.4, 0.1]])).tolist() == [[1, 2, 1, 2]]


def test_rank_pearson() -> None:
    a, b = np.array([0.7, 0.1, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    expected = stats.pearsonr(stats.rankdata(-a), stats.rankdata(-b)).statistic
    flat = np.full(4, 0.25)  # undefined counts 0
    assert rank_pearson(np.array([a, a, a]), np.array([b, a, flat])) == pytest.approx(
        [expected, 1.0, 0.0]
    )


def test_kl_is_base_from_tuned() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergence(np.array([p, p]), np.array([q, p])) == pytest.approx([expected, 0.0])


def test_many_distributions_against_scipy() -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.integers(1, 5, (500, 5)).astype(float) for _ in range(2))  # with ties
    assert (dense_ranks(before) == stats.rankdata(-before, method="dense", axis=1)).all()
    p, q = (x / x.sum(1, keepdims=True) for x in (before, after))
    p[0, 2], q[1, 2] = 0, 0
    np.testing.assert_allclose(kl_divergence(p, q)[2:], stats.entropy(p, q, axis=1)[2:], atol=1e-12)
    assert np.isfinite(kl_divergence(p, q)[0]) and np.isinf(kl_divergence(p, q)[1])
