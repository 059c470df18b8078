"""Rank correlations over domains and ratios: the paper's, and the mean within domains.

Pure functions. The paper's is Spearman's partial correlation of all points, controlling for the
base model's score; it has no interval here, because points of one domain are dependent. Within a
domain the base model's score is constant, so the mean over domains of the correlation within each
is controlled for every difference between domains, and has an interval and a test.

An undefined result carries its reason as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Correlation:
    """A correlation of n points; undefined values are None, with a `reason`."""

    n: int
    rho: float | None = None
    p: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class WithinDomains:
    """The mean of the domains' rank correlations; undefined values are None, with a `reason`."""

    rho: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str = ""


def partial_spearman(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> Correlation:
    """Correlates the ranks of x and y after removing what is linear in the ranks of `control`.

    Args:
        x, y: Shape (n,).
        control: Shape (n,) or (n, k). A constant column has no effect and is not counted in k.

    p is two-sided, from a t distribution with n - 2 - k degrees of freedom (Kim 2015, ppcor).
    """
    n = len(x)
    left = _residuals(x, y, control)
    if isinstance(left, str):
        return Correlation(n, reason=left)
    freedom = n - 2 - len(_varying(control))
    rho = float(np.clip(left[0] @ left[1], -1, 1))
    t = rho * np.sqrt(freedom / max(1 - rho**2, np.finfo(float).eps))
    return Correlation(n, rho, float(2 * scipy.stats.t.sf(abs(t), freedom)))


def _varying(control: np.ndarray) -> list[np.ndarray]:
    return [column for column in np.reshape(control, (len(control), -1)).T if np.ptp(column) > 0]


def _residuals(
    x: np.ndarray, y: np.ndarray, control: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | str:
    """Returns the residual ranks of x and y, each of norm 1, or the reason why undefined."""
    n, ranks = len(x), [scipy.stats.rankdata(column) for column in _varying(control)]
    if n < 3 + len(ranks):
        return f"{n} points are too few: at least {3 + len(ranks)} are required"
    design = np.column_stack([np.ones(n), *ranks])
    left = []
    for name, values in (("the measure", x), ("accuracy", y)):
        if np.ptp(values) == 0:
            return f"zero variance: {name} is the same in all {n} points"
        ranked = scipy.stats.rankdata(values)
        residual = ranked - design @ np.linalg.lstsq(design, ranked, rcond=None)[0]
        if residual @ residual < _ROUNDING * n**3:
            return f"zero variance: {name} has no variation besides what it is controlled for"
        left.append(residual / np.sqrt(residual @ residual))
    return left[0], left[1]


def within_domains(
    x: np.ndarray, y: np.ndarray, domains: Sequence[str], level: float, samples: int, seed: int
) -> WithinDomains:
    """Returns the mean over domains of Spearman's correlation of x and y within each.

    Interval: Student's t over the domains' correlations, domains - 1 degrees of freedom (Ibragimov
    and Mueller 2010: valid with few and unlike clusters, whatever the dependence within them; here
    mixtures of one seed share examples, so neighboring ratios are dependent). The standard
    deviation is at least that of rounding to the steps of a rank correlation, step / sqrt(12).

    p: two-sided, for no relation in these domains, from `samples` permutations of y within each
    domain. It takes points of one domain as exchangeable, and so misses their dependence; with the
    interval it excludes chance agreement of few domains with few points (docs/intervals.md).
    """
    names, units = np.asarray(domains, dtype=str), []
    for name in dict.fromkeys(domains):
        of_domain = x[names == name], y[names == name]
        for which, values in zip(("the measure", "accuracy"), of_domain, strict=True):
            if np.ptp(values) == 0:
                return WithinDomains(reason=f"{which} is the same in all points of {name}")
        units.append([_unit_ranks(values) for values in of_domain])
    rhos = np.array([unit_x @ unit_y for unit_x, unit_y in units])
    rho, num = float(rhos.mean()), len(rhos)
    rng, permuted = np.random.default_rng(seed), np.zeros(samples)
    for unit_x, unit_y in units:
        orders = np.broadcast_to(unit_y, (samples, len(unit_y)))
        permuted += rng.permuted(orders, axis=1) @ unit_x
    as_far = (np.abs(permuted / num) >= abs(rho) - _ROUNDING).sum()
    p = float((1 + as_far) / (samples + 1))
    if num == 1:
        return WithinDomains(rho, p=p, reason=f"no interval: {names[0]} is the only domain")
    step = max(12 / (len(unit) ** 3 - len(unit)) for unit, _ in units)
    deviation = max(rhos.std(ddof=1), step / 12**0.5)
    half = float(scipy.stats.t.ppf((1 + level) / 2, num - 1) * deviation / num**0.5)
    return WithinDomains(rho, max(rho - half, -1.0), min(rho + half, 1.0), p)


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Returns the centred ranks of values that are not all equal, of norm 1."""
    ranks = scipy.stats.rankdata(values)
    centred: np.ndarray = ranks - ranks.mean()
    return centred / np.sqrt(centred @ centred)
