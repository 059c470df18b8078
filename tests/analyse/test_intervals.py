"""Intervals against scipy, statsmodels, published values and simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from ift_scale.analyse.intervals import Bootstrap, Resamples, Table, of_share, question_bootstrap, two_way_bootstrap, wilson


def _table(values: np.ndarray, name: str = "q") -> Table:
    return Table(values, [f"{name}{i}" for i in range(values.shape[1])])


def test_wilson_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    interval = wilson(81, 263, 0.95)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


@pytest.mark.parametrize(("right", "num", "level"), [(0, 36, 0.95), (36, 36, 0.9), (17, 250, 0.99)])
def test_wilson_agrees_with_statsmodels(right: int, num: int, level: float) -> None:
    interval = wilson(right, num, level)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(right, num, 1 - level, method="wilson"))


def test_bootstrap_over_questions_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).random(200) < 0.6
    ours = two_way_bootstrap([_table(values[None].astype(float))], 4000, 0.95, seed=0)
    theirs = stats.bootstrap((values.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01) and ours.high == pytest.approx(theirs.high, abs=0.01)


def test_bootstrap_over_questions_takes_seeds_as_they_are() -> None:
    """Seeds far apart and questions all alike: only the two-way interval has a width."""
    table = _table(np.repeat([[0.2], [0.5], [0.8]], 50, axis=1))
    assert question_bootstrap([table], 300, 0.95, 0).high == pytest.approx(0.5)
    assert two_way_bootstrap([table], 300, 0.95, 0).high > 0.7


def test_bootstrap_knows_that_seeds_differ() -> None:
    """Seeds that disagree widen the interval beyond what questions alone would."""
    questions = np.random.default_rng(0).random((1, 400))
    same = np.repeat((questions < 0.5).astype(float), 3, axis=0)
    apart = np.concatenate([(questions < p).astype(float) for p in (0.3, 0.5, 0.7)])
    narrow, wide = (two_way_bootstrap([_table(table)], 2000, 0.95, 0) for table in (same, apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_the_variance_over_seeds_is_the_unbiased_one(num_seeds: int) -> None:
    """What drawing all S of S would make too small by (S - 1) / S."""
    means_S = np.random.default_rng(2).random(num_seeds)
    drawn = Resamples({"d": ["q"]}, 40_000, 0).seed_weights(num_seeds) @ means_S
    assert drawn.mean() == pytest.approx(means_S.mean(), abs=0.005)
    assert drawn.var() == pytest.approx(means_S.var(ddof=1) / num_seeds, rel=0.05)


@pytest.mark.parametrize(("num_seeds", "spread"), [(8, 0.05), (3, 0.05), (3, 0.0)])
def test_bootstrap_covers_the_truth_at_its_level(num_seeds: int, spread: float) -> None:
    """Simulated: seeds and questions both drawn; the interval must not be too narrow for few of either."""
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        chance = 0.6 + spread * rng.standard_normal((num_seeds, 1)) + 0.2 * rng.standard_normal((1, 100))
        table = (rng.random((num_seeds, 100)) < chance).astype(float)
        interval = two_way_bootstrap([_table(table)], 300, 0.95, trial)
        covered += interval.low <= 0.6 <= interval.high
    assert covered / 200 > 0.90


def test_domains_count_alike_whatever_their_size() -> None:
    tables = [_table(np.ones((2, 10)), "a"), _table(np.zeros((2, 1000)), "b")]
    interval = two_way_bootstrap(tables, 200, 0.9, 0)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_questions_asked_in_several_domains_are_not_counted_as_new_ones() -> None:
    values = (np.random.default_rng(0).random((1, 300)) < 0.5).astype(float)
    once = two_way_bootstrap([_table(values)], 2000, 0.95, 0)
    shared = two_way_bootstrap([_table(values)] * 4, 2000, 0.95, 0)
    apart = two_way_bootstrap([_table(values, f"{i}-") for i in range(4)], 2000, 0.95, 0)
    assert shared.high - shared.low == pytest.approx(once.high - once.low)
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_a_domain_has_all_its_questions_in_every_sample() -> None:
    drawn = Resamples({"a": ["1", "2", "shared"], "b": ["shared", "3"]}, 500, 0)
    assert (drawn.draw("a", np.ones((1, 3))).samples_RB == 1).all()
    alone = drawn.draw("a", np.array([[0.0, 0.0, 1.0]])).samples_RB
    assert alone == pytest.approx(1 / 3)  # the only one of its stratum


def test_missing_values_are_left_out_of_mean_and_samples() -> None:
    values = np.array([[1.0, 0.0, np.nan, 1.0], [np.nan] * 4])
    drawn = Resamples({"d": list("abcd")}, 4000, 0)
    means = drawn.draw("d", values)
    assert means.own_R[0] == pytest.approx(2 / 3) and np.isnan(means.own_R[1])
    assert np.isfinite(means.samples_RB[0]).all() and means.samples_RB[0].mean() == pytest.approx(2 / 3, abs=0.02)
    found = drawn.combine([means])
    assert found is not None and found.value == pytest.approx(2 / 3)  # the seed without a value is left out
    assert drawn.combine([means.of([1])]) is None
    some = drawn.draw("d", np.array([[1.0, 0.0, 0.0, 1.0]]), np.array([True, False, False, True]))
    assert some.own_R[0] == 1 and (some.samples_RB == 1).all()


def test_all_right_is_not_certain() -> None:
    nothing_varies = Bootstrap(1.0, np.ones(100), np.ones(100))
    assert of_share(nothing_varies, 36, 0.95) == wilson(36, 36, 0.95)
