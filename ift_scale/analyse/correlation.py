"""Spearman's partial correlation with an interval over domains. Pure functions; what is undefined says why, in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

_ROUNDING = 1e-9
_LARGEST = 1 - 1e-6


@dataclass(frozen=True)
class Correlation:
    """`rho` and `p`, and the interval from `low` to `high`; None where undefined, and then `reason` says why, else it is empty."""

    n: int
    rho: float | None = None
    p: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def partial_spearman(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> Correlation:
    """Correlation of the ranks of x and y, both shape (n,), without what is linear in the ranks of `control`, (n,) or (n, k).

    p: two-sided, t distribution with n - 2 - k degrees of freedom (Kim 2015, ppcor). A control that is the same in all points takes
    nothing away and is not counted in k.
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
    """What is left of the ranks of x and y, each of norm 1; or why it is undefined."""
    n, ranks = len(x), [scipy.stats.rankdata(column) for column in _varying(control)]
    if n < 3 + len(ranks):
        return f"{n} points are too few: {3 + len(ranks)} are the least"
    design = np.column_stack([np.ones(n), *ranks])
    left = []
    for name, values in (("the measure", x), ("accuracy", y)):
        if np.ptp(values) == 0:
            return f"zero variance: {name} is the same in all {n} points"
        ranked = scipy.stats.rankdata(values)
        residual = ranked - design @ np.linalg.lstsq(design, ranked, rcond=None)[0]
        if residual @ residual < _ROUNDING * n**3:
            return f"zero variance: {name} has none left beside what it is controlled for"
        left.append(residual / np.sqrt(residual @ residual))
    return left[0], left[1]


def clustered(
    x: np.ndarray, y: np.ndarray, control: np.ndarray, clusters: Sequence[str], level: float
) -> Correlation:
    """The same with an interval over clusters (domains): their points are not independent.

    The jackknife that leaves out one cluster at a time, on Fisher's z, with Student's t of (clusters - 1) degrees of freedom
    (MacKinnon, Nielsen and Webb 2023: reliable with few clusters, where bootstraps that draw them are too narrow). Its variance is
    not taken to be below Fisher's for as many independent points, 1.06 / (n - 3 - k) (Fieller, Hartley and Pearson 1957).
    """
    found = partial_spearman(x, y, control)
    if found.rho is None:
        return found
    labels, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    num, free = len(labels), found.n - 3 - len(_varying(control))
    if num == 1:
        return replace(found, reason=f"no interval: {labels[0]} is the only domain")
    if free < 1:
        return replace(found, reason=f"no interval: {found.n} points are too few")
    kept = [numbers != i for i in range(num)]
    without = [partial_spearman(x[points], y[points], control[points]).rho for points in kept]
    if None in without:
        return replace(
            found, reason=f"no interval: undefined without {labels[without.index(None)]}"
        )
    z_K, z = _fisher(np.array(without, dtype=float)), _fisher(np.array(found.rho))
    variance = max((num - 1) / num * ((z_K - z_K.mean()) ** 2).sum(), 1.06 / free)
    half = scipy.stats.t.ppf((1 + level) / 2, num - 1) * np.sqrt(variance)
    return replace(found, low=float(np.tanh(z - half)), high=float(np.tanh(z + half)))


def _fisher(rho: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(rho, -_LARGEST, _LARGEST))


def within_domains(
    x: np.ndarray,
    y: np.ndarray,
    control: np.ndarray,
    clusters: Sequence[str],
    samples: int,
    seed: int,
) -> float | None:
    """p of no relation within any cluster: two-sided, from permutations of y within clusters; None where rho is undefined.

    Unlike the t distribution's p it takes nothing for independent that differs between clusters. `control` is the same throughout a
    cluster, so permuting y permutes what is left of its ranks (Freedman and Lane 1983).
    """
    residuals = _residuals(x, y, control)
    if isinstance(residuals, str):
        return None
    left_x, left_y = residuals
    order = np.argsort(np.asarray(clusters, dtype=str), kind="stable")
    left_x, left_y, names = left_x[order], left_y[order], np.asarray(clusters, dtype=str)[order]
    _, starts = np.unique(names, return_index=True)
    rng = np.random.default_rng(seed)
    parts = np.split(np.broadcast_to(left_y, (samples, len(left_y))), starts[1:], axis=1)
    permuted = np.concatenate([rng.permuted(part, axis=1) for part in parts], axis=1)
    as_far = np.abs(permuted @ left_x) >= abs(left_x @ left_y) - _ROUNDING
    return float((1 + as_far.sum()) / (samples + 1))
