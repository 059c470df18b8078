"""Spearman's partial correlation against ppcor's published output and statsmodels; what is undefined has its reason."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from ift_scale.analyse.correlation import clustered, partial_spearman, within_domains


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


def test_interval_over_domains_holds_the_estimate() -> None:
    found = clustered(*_points(), 0.95)
    assert (
        found.rho
        and found.low
        and found.high
        and found.low < found.rho < found.high
        and found.reason == ""
    )
    wider = clustered(*_points(), 0.99)
    assert wider.low is not None and wider.low < found.low


def test_an_interval_is_the_jackknife_over_domains() -> None:
    x, y, base, domains = _points(seed=5)
    names, z = np.array(domains), np.arctanh(partial_spearman(x, y, base).rho or 0)
    without = [
        np.arctanh(partial_spearman(x[k], y[k], base[k]).rho or 0)
        for d in dict.fromkeys(domains)
        if (k := names != d).any()
    ]
    error = np.sqrt(max(3 / 4 * np.sum((np.array(without) - np.mean(without)) ** 2), 1.06 / 28))
    found = clustered(x, y, base, domains, 0.95)
    assert (found.low, found.high) == pytest.approx(
        np.tanh(z + stats.t.ppf(0.975, 3) * error * np.array([-1, 1]))
    )


def test_the_permutation_test_agrees_with_all_permutations() -> None:
    """One domain of five points: all 120 orders, by scipy."""
    x, y, _, domains = _points(1, 5, seed=3)
    exact = stats.permutation_test(
        (x,), lambda v: stats.spearmanr(v, y).statistic, permutation_type="pairings"
    ).pvalue
    ours = within_domains(x, y, np.full(5, 0.5), domains, 20_000, 0)
    assert ours == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_no_relation_is_seldom_called_one(apart: float) -> None:
    """Domains that differ in both measures beyond the base model's accuracy mislead the t distribution's p, and neither of ours."""
    rng, called = np.random.default_rng(1), np.zeros(3)
    for _ in range(trials := 150):
        base, domains = rng.uniform(0.4, 0.7, 4).repeat(6), np.repeat(list("abcd"), 6)
        x, y = (
            apart * rng.standard_normal(4).repeat(6) + rng.standard_normal(24) for _ in range(2)
        )
        found = clustered(x, y, base, domains.tolist(), 0.95)
        p = within_domains(x, y, base, domains.tolist(), 200, 0)
        assert (
            found.low is not None
            and found.high is not None
            and found.p is not None
            and p is not None
        )
        called += [found.low > 0 or found.high < 0, p <= 0.05, found.p <= 0.05]
    assert called[0] / trials <= 0.05 and called[1] / trials < 0.09
    assert called[2] / trials < 0.1 if not apart else called[2] / trials > 0.2


@pytest.mark.parametrize("swapped", [False, True])
def test_zero_variance_is_told_in_words(swapped: bool) -> None:
    x, y, base, domains = _points()
    flat = np.full(len(x), 0.25)
    found = clustered(*((x, flat) if swapped else (flat, y)), base, domains, 0.95)
    assert found.rho is None and found.p is None and found.low is None
    assert (
        found.reason
        == f"zero variance: {'accuracy' if swapped else 'the measure'} is the same in all 32 points"
    )


def test_other_undefined_cases_are_told_in_words() -> None:
    x, y, base, domains = _points()
    assert (
        partial_spearman(x[:3], y[:3], base[:3] + np.arange(3)).reason
        == "3 points are too few: 4 are the least"
    )
    assert "none left beside" in partial_spearman(x, base, base).reason
    one = clustered(x[:8], y[:8], base[:8], domains[:8], 0.95)
    assert (
        one.rho is not None
        and one.low is None
        and one.reason == "no interval: d0 is the only domain"
    )


def test_domains_may_have_unlike_numbers_of_points() -> None:
    x, y, base, domains = _points()
    keep = np.r_[0:3, 8:32]
    assert clustered(x[keep], y[keep], base[keep], [domains[i] for i in keep], 0.95).low is not None
