"""Intervals against scipy, statsmodels, published values and mixed models' formulas; their coverage is in test_coverage.py."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from ift_scale.analyse.estimates import Table, estimate
from ift_scale.analyse.intervals import DIFFERENCE, SHARE, UNBOUNDED, Estimate, Measure, wilson

PLAIN = Measure(-np.inf, np.inf, fewest=1)
"""Without pseudo-questions: what textbooks have."""


def _table(values: np.ndarray, start: int = 0, seeds: list[int] | None = None) -> Table:
    return Table(values, start + np.arange(values.shape[1]), seeds or list(range(len(values))))


def _made(tables: list[Table], measure: Measure = PLAIN) -> Estimate:
    made = estimate(tables, measure)
    assert made is not None
    return made


def test_wilson_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    interval = wilson(81, 263, 0.95)
    assert (interval.low, interval.high) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )


@pytest.mark.parametrize(("right", "num", "level"), [(0, 36, 0.95), (36, 36, 0.9), (17, 250, 0.99)])
def test_wilson_agrees_with_statsmodels(right: int, num: int, level: float) -> None:
    interval = wilson(right, num, level)
    assert (interval.low, interval.high) == pytest.approx(
        proportion_confint(right, num, 1 - level, method="wilson")
    )


@pytest.mark.parametrize(("right", "num"), [(3, 20), (0, 12), (40, 40), (117, 250)])
def test_one_seed_and_domain_is_agresti_and_coulls_interval(right: int, num: int) -> None:
    """statsmodels adds z^2 / 2 = 1.92 on each side where ours adds 2."""
    shown = _made([_table((np.arange(num) < right)[None].astype(float))], SHARE).shown(0.95)
    theirs = np.clip(proportion_confint(right, num, 0.05, method="agresti_coull"), 0, 1)
    assert shown is not None and (shown.low, shown.high) == pytest.approx(
        theirs, abs=0.02 * 10 / num
    )


def test_several_domains_are_price_and_bonetts_interval() -> None:
    """Price and Bonett 2004, (2): (x + 2 / m) / (n + 4 / m) of each of the m proportions."""
    rights, nums = np.array([3, 11, 20]), np.array([12, 30, 21])
    tables = [
        _table((np.arange(n) < x)[None].astype(float), 100 * i)
        for i, (x, n) in enumerate(zip(rights, nums, strict=True))
    ]
    shown = _made(tables, SHARE).shown(0.95)
    p = (rights + 2 / 3) / (nums + 4 / 3)
    half = stats.norm.ppf(0.975) * np.sqrt((p * (1 - p) / (nums + 4 / 3)).sum()) / 3
    assert shown is not None and (shown.low, shown.high) == pytest.approx(
        (p.mean() - half, p.mean() + half), abs=0.004
    )
    assert shown.value == pytest.approx((rights / nums).mean())


def test_paired_differences_are_agresti_and_mins_interval() -> None:
    """Agresti and Min 2005: half a pair is added to each of the four cells. 16 and 7 of 60 pairs differ."""
    differences = np.repeat([1.0, -1.0, 0.0], [16, 7, 37])
    shown = _made([_table(differences[None])], DIFFERENCE).over_questions(0.95)
    b, c, n = 16.5, 7.5, 62
    half = stats.norm.ppf(0.975) * np.sqrt((b + c) - (b - c) ** 2 / n) / n
    assert shown is not None and (shown.low, shown.high) == pytest.approx(
        ((b - c) / n - half, (b - c) / n + half), abs=0.002
    )


def test_questions_that_all_agree_leave_students_interval_over_seeds() -> None:
    """A domain whose questions are answered alike: what varies is the seeds' means."""
    means = np.array([0.2, 0.5, 0.6, 0.7])
    found = _made([_table(np.repeat(means[:, None], 50, axis=1))]).interval(0.95)
    theirs = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert found is not None and (found.low, found.high) == pytest.approx(theirs)


def test_seeds_that_all_agree_leave_the_questions() -> None:
    values = np.random.default_rng(1).random(200) < 0.6
    made = _made([_table(np.repeat(values[None], 3, axis=0).astype(float))])
    found = made.interval(0.95)
    assert found is not None and (found.low, found.high) == pytest.approx(
        stats.norm.interval(0.95, values.mean(), stats.sem(values))
    )
    assert made.over_questions(0.95) == found


def test_variances_are_those_of_the_crossed_model() -> None:
    """Mean squares of seeds, questions and residuals (Searle, Casella and McCulloch 1992): the mean's variance is
    (MS_seeds + MS_questions - MS_residual) / (S Q)."""
    y = np.random.default_rng(2).normal(size=(4, 30)) + np.random.default_rng(3).normal(
        size=(1, 30)
    )
    s, q = y.shape
    seeds = q * y.mean(1).var(ddof=1)
    questions = s * y.mean(0).var(ddof=1)
    residual = ((y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()) ** 2).sum() / (
        (s - 1) * (q - 1)
    )
    made = _made([_table(y)])
    assert made.seed_variance == pytest.approx(seeds / (s * q))
    assert made.question_variance == pytest.approx((questions - residual) / (s * q), rel=1e-6)
    assert made.own_variance == pytest.approx(questions / (s * q))


def test_a_seed_is_one_draw_in_all_domains() -> None:
    """What a seed does to all domains alike is not averaged away over them; what it does to one of them is."""
    values = np.repeat([[0.2], [0.5], [0.8]], 40, axis=1)
    alike = _made([_table(values, 100 * d) for d in range(4)])
    apart = _made([_table(values, 100 * d, [10 * d, 10 * d + 1, 10 * d + 2]) for d in range(4)])
    assert alike.seed_variance == pytest.approx(0.09 / 3) and apart.seed_variance == pytest.approx(
        0.09 / 3 / 4
    )


def test_a_domain_with_one_seed_leaves_no_interval_over_seeds() -> None:
    made = _made([_table(np.eye(2, 20)), _table(np.ones((1, 20)), 50)])
    assert made.seeds == 1 and made.interval(0.95) is None and made.p_value() is None
    assert (
        made.missing == "one seed: no interval over seeds"
        and made.over_questions(0.95) == made.shown(0.95) is not None
    )


def test_p_is_where_the_interval_leaves_zero_out() -> None:
    made = _made([_table(np.random.default_rng(0).normal(0.2, 0.5, (3, 80)))])
    p = made.p_value()
    assert p is not None and 1e-6 < p < 0.5
    wide, narrow = made.interval(1 - p * 0.99), made.interval(1 - p * 1.01)
    assert (
        wide is not None and narrow is not None and not wide.excludes_zero and narrow.excludes_zero
    )
    assert _made([_table(np.ones((3, 80)))], DIFFERENCE).p_value() == 1e-12


def test_domains_count_alike_whatever_their_size() -> None:
    made = _made([_table(np.ones((2, 10))), _table(np.zeros((2, 1000)), 10)])
    assert made.value == 0.5 and made.domains == 2 and made.fewest_questions == 10


def test_questions_asked_in_several_domains_are_not_counted_as_new_ones() -> None:
    values = (np.random.default_rng(0).random((1, 300)) < 0.5).astype(float)
    once, shared, apart = (
        _made([_table(values, step * d) for d in range(num)]).own_variance
        for num, step in ((1, 0), (4, 0), (4, 1000))
    )
    assert shared == pytest.approx(once) and apart == pytest.approx(once / 4)


def test_domains_are_fixed_and_their_questions_are_not() -> None:
    """Questions that only one of two domains asks vary among themselves; the only one of its kind is taken whole."""
    one, other = np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, 0.0]])
    made = _made([Table(one, np.array([0, 1, 2]), [0]), Table(other, np.array([2, 3]), [0])])
    influence = np.array([-1 / 18, -1 / 18, 1 / 9 + 1 / 8, -1 / 8])
    assert made.own_variance == pytest.approx((influence[2:] ** 2).sum())  # the first two are alike
    assert made.value == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_missing_values_are_left_out() -> None:
    values = np.array([[1.0, 0.0, np.nan, 1.0], [np.nan] * 4])
    made = _made([_table(values), _table(np.full((2, 3), np.nan), 10)])
    assert made.value == pytest.approx(2 / 3) and (
        made.domains,
        made.seeds,
        made.fewest_questions,
    ) == (1, 1, 3)
    assert estimate([_table(np.full((2, 3), np.nan))], PLAIN) is None


def test_a_divergence_that_never_varies_has_no_interval() -> None:
    made = _made([_table(np.zeros((3, 60)))], UNBOUNDED)
    assert made.interval(0.95) is None and made.missing == "no interval: nothing varies"
