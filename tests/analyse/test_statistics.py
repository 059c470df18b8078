"""The statistics against scipy and published values."""

import numpy as np
import pytest
from scipy import stats

from ift_scale.analyse.statistics import Table, two_way_bootstrap, wilson


def _table(values: np.ndarray, name: str = "q") -> Table:
    return Table(values, [f"{name}{i}" for i in range(values.shape[1])])


def test_wilson_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    interval = wilson(81, 263, 0.95)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_bootstrap_over_questions_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).random(200) < 0.6
    ours = two_way_bootstrap([_table(values[None].astype(float))], 4000, 0.95, seed=0)
    theirs = stats.bootstrap((values.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert ours.value == values.mean()
    assert ours.low == pytest.approx(theirs.low, abs=0.01) and ours.high == pytest.approx(theirs.high, abs=0.01)


def test_bootstrap_knows_that_seeds_differ() -> None:
    """Seeds that disagree widen the interval beyond what questions alone would."""
    questions = np.random.default_rng(0).random((1, 400))
    same = np.repeat((questions < 0.5).astype(float), 3, axis=0)
    apart = np.concatenate([(questions < p).astype(float) for p in (0.3, 0.5, 0.7)])
    narrow, wide = (two_way_bootstrap([_table(table)], 2000, 0.95, 0) for table in (same, apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_bootstrap_covers_the_truth_at_its_level() -> None:
    """Simulated: seeds and questions both drawn; the interval must not be too narrow for few of either."""
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        chance = 0.6 + 0.05 * rng.standard_normal((8, 1)) + 0.2 * rng.standard_normal((1, 100))
        table = (rng.random((8, 100)) < chance).astype(float)
        interval = two_way_bootstrap([_table(table)], 300, 0.95, trial)
        covered += interval.low <= 0.6 <= interval.high
    assert covered / 200 > 0.90


def test_domains_count_alike_whatever_their_size() -> None:
    tables = [_table(np.ones((2, 10)), "a"), _table(np.zeros((2, 1000)), "b")]
    assert two_way_bootstrap(tables, 200, 0.9, 0).value == 0.5


def test_questions_asked_in_several_domains_are_not_counted_as_new_ones() -> None:
    values = (np.random.default_rng(0).random((1, 300)) < 0.5).astype(float)
    once = two_way_bootstrap([_table(values)], 2000, 0.95, 0)
    shared = two_way_bootstrap([_table(values)] * 4, 2000, 0.95, 0)
    apart = two_way_bootstrap([_table(values, f"{i}-") for i in range(4)], 2000, 0.95, 0)
    assert shared.high - shared.low == pytest.approx(once.high - once.low)
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / 2, rel=0.1)
