"""Spearman's partial correlation against ppcor's published output and statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from benchmarks.simulated_points import PointsCase, simulate_points
from ift_scale.analyse.correlation import partial_spearman, within_domains


def test_published_example() -> None:
    # R's ppcor (Kim 2015), data of its manual: pcor.test(hl, disp, (deg, BC), method = "spearman").
    hl = np.array([7, 15, 19, 15, 21, 22, 57, 15, 20, 18])
    disp = np.array([0, 0.964, 0, 0, 0.921, 0, 0, 1.006, 0, 1.011])
    deg = np.array([9, 2, 3, 4, 1, 3, 1, 3, 6, 1])
    bc = np.array([1.78e-02, 1.05e-06, 1.37e-05, 7.18e-03, 0, 0, 0, 4.48e-03, 2.10e-06, 0])
    found = partial_spearman(hl, disp, np.column_stack([deg, bc]))
    assert found.rho == pytest.approx(-0.7647345, abs=5e-8) and found.p == pytest.approx(
        0.02708081, abs=5e-8
    )


def _points(
    num_domains: int = 4, ratios: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.uniform(0.4, 0.7, num_domains), ratios)
    consistency = np.tile(np.linspace(0, 1, ratios), num_domains) + 0.2 * rng.standard_normal(
        len(base)
    )
    accuracy = base + 0.3 * consistency + 0.1 * rng.standard_normal(len(base))
    return consistency, accuracy, base, [f"d{i // ratios}" for i in range(len(base))]


def test_agrees_with_statsmodels() -> None:
    """The p value is that of consistency's ranks in a regression on both."""
    x, y, base, _ = _points()
    found = partial_spearman(x, y, base)
    ranks = [stats.rankdata(v) for v in (x, y, base)]
    fitted = sm.OLS(ranks[1], sm.add_constant(np.column_stack([ranks[0], ranks[2]]))).fit()
    assert found.n == 32 and found.p == pytest.approx(fitted.pvalues[1])
    t = fitted.tvalues[1]
    assert found.rho == pytest.approx(t / np.sqrt(t**2 + 29))


def test_a_control_that_never_varies_takes_nothing_away() -> None:
    x, y, _, _ = _points(1)
    found, plain = partial_spearman(x, y, np.full(len(x), 0.5)), stats.spearmanr(x, y)
    assert (found.rho, found.p) == (pytest.approx(plain.statistic), pytest.approx(plain.pvalue))


def test_within_domains_is_the_mean_of_scipys_correlations() -> None:
    x, y, _, domains = _points(seed=5)
    rhos = [stats.spearmanr(x[i : i + 8], y[i : i + 8]).statistic for i in range(0, len(x), 8)]
    found = within_domains(x, y, domains, 0.95, 200, 0)
    theirs = stats.t.interval(0.95, 3, np.mean(rhos), stats.sem(rhos))
    assert found.rho == pytest.approx(np.mean(rhos)) and found.reason == ""
    assert (found.low, found.high) == pytest.approx((theirs[0], min(theirs[1], 1)))
    wider = within_domains(x, y, domains, 0.99, 200, 0)
    assert wider.low is not None and wider.low < theirs[0]


def test_differences_between_domains_change_nothing() -> None:
    x, y, _, domains = _points(seed=5)
    shift = np.repeat([0.0, 5.0, -3.0, 20.0], 8)
    assert within_domains(x, y, domains, 0.95, 200, 0) == within_domains(
        x + shift, y - 2 * shift, domains, 0.95, 200, 0
    )


def test_the_order_of_the_points_changes_nothing_but_the_permutations() -> None:
    x, y, _, domains = _points(seed=5)
    order = np.random.default_rng(0).permutation(len(x))
    one = within_domains(x, y, domains, 0.95, 200, 0)
    other = within_domains(x[order], y[order], [domains[i] for i in order], 0.95, 200, 0)
    assert (one.rho, one.low, one.high) == pytest.approx((other.rho, other.low, other.high))


def test_equal_correlations_are_not_certain() -> None:
    """All domains have the same order: the interval is as wide as the steps of a rank."""
    x = np.tile(np.arange(4.0), 3)
    found = within_domains(x, x, list("aaaabbbbcccc"), 0.95, 2000, 0)
    half = stats.t.ppf(0.975, 2) * 12 / 60 / 12**0.5 / 3**0.5
    assert (found.rho, found.low, found.high) == pytest.approx((1, 1 - half, 1))
    assert found.p is not None and found.p < 0.01


def test_the_permutation_test_agrees_with_all_permutations() -> None:
    """One domain of five points: all 120 orders, by scipy."""
    x, y, _, domains = _points(1, 5, seed=3)
    exact = stats.permutation_test(
        (x,), lambda v: stats.spearmanr(v, y).statistic, permutation_type="pairings"
    ).pvalue
    found = within_domains(x, y, domains, 0.95, 20_000, 0)
    assert found.p == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("dependence", [0.0, 0.7])
def test_no_relation_is_seldom_called_one(dependence: float) -> None:
    """Dependent neighbors mislead the permutation test, but not the interval over domains."""
    case, trials = PointsCase(4, 8, apart=1.5, dependence=dependence), 200
    found = simulate_points(case, trials)
    noise = 2.5 * (0.05 * 0.95 / trials) ** 0.5
    assert found["excludes_zero"] <= 0.05 + noise and found["verdict"] <= 0.05 + noise
    assert found["p_within"] <= 0.05 + noise if not dependence else found["p_within"] > 0.1
    assert found["p"] > 0.1  # the t distribution's, of the partial correlation


def test_a_relation_is_found_whatever_lies_between_domains() -> None:
    assert simulate_points(PointsCase(4, 8, slope=0.8, apart=1.5), 60)["verdict"] > 0.8


@pytest.mark.parametrize("swapped", [False, True])
def test_zero_variance_is_told_in_words(swapped: bool) -> None:
    x, y, base, domains = _points()
    flat = np.full(len(x), 0.25)
    x, y = (x, flat) if swapped else (flat, y)
    found, which = partial_spearman(x, y, base), "accuracy" if swapped else "the measure"
    assert found.rho is None and found.p is None
    assert found.reason == f"zero variance: {which} is the same in all 32 points"
    within = within_domains(x, y, domains, 0.95, 200, 0)
    assert within.rho is None and within.low is None and within.p is None
    assert within.reason == f"{which} is the same in all points of d0"


def test_other_undefined_cases_are_told_in_words() -> None:
    x, y, base, domains = _points()
    assert (
        partial_spearman(x[:3], y[:3], base[:3] + np.arange(3)).reason
        == "3 points are too few: at least 4 are required"
    )
    assert "no variation besides" in partial_spearman(x, base, base).reason
    one = within_domains(x[:8], y[:8], domains[:8], 0.95, 200, 0)
    assert one.rho is not None and one.p is not None and one.low is None
    assert one.reason == "no interval: d0 is the only domain"


def test_domains_may_have_unlike_numbers_of_points() -> None:
    x, y, _, domains = _points()
    keep = np.r_[0:3, 8:32]
    found = within_domains(x[keep], y[keep], [domains[i] for i in keep], 0.95, 200, 0)
    assert found.low is not None and found.p is not None
