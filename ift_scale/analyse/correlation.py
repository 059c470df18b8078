"""Spearman's partial correlation with an interval over domains. Pure functions.

An undefined result carries its reason as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

_ROUNDING = 1e-9
_LARGEST = 1 - 1e-6


@dataclass(frozen=True)
class Correlation:
    """A partial correlation and its interval; undefined values are None, with a `reason`."""

    n: int
    rho: float | None = None
    p: float | None = None
    low: float | None = None
    high: float | None = None
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


def clustered(
    x: np.ndarray, y: np.ndarray, control: np.ndarray, clusters: Sequence[str], level: float
) -> Correlation:
    """Adds an interval over clusters (domains), because points of one cluster are dependent.

    Jackknife over clusters on Fisher's z, with Student's t of (clusters - 1) degrees of freedom
    (MacKinnon, Nielsen and Webb 2023: reliable with few clusters, whereas cluster bootstraps are
    too narrow). The variance is at least Fisher's for independent points, 1.06 / (n - 3 - k)
    (Fieller, Hartley and Pearson 1957).
    """
    result = partial_spearman(x, y, control)
    if result.rho is None:
        return result
    labels, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    num, free = len(labels), result.n - 3 - len(_varying(control))
    if num == 1:
        return replace(result, reason=f"no interval: {labels[0]} is the only domain")
    if free < 1:
        return replace(result, reason=f"no interval: {result.n} points are too few")
    kept = [numbers != i for i in range(num)]
    without = [partial_spearman(x[points], y[points], control[points]).rho for points in kept]
    if None in without:
        return replace(
            result, reason=f"no interval: undefined without {labels[without.index(None)]}"
        )
    z_K, z = _fisher(np.array(without, dtype=float)), _fisher(np.array(result.rho))
    variance = max((num - 1) / num * ((z_K - z_K.mean()) ** 2).sum(), 1.06 / free)
    half = scipy.stats.t.ppf((1 + level) / 2, num - 1) * np.sqrt(variance)
    return replace(result, low=float(np.tanh(z - half)), high=float(np.tanh(z + half)))


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
    """Returns p for no relation within clusters, from permutations of y within clusters.

    Two-sided; None if rho is undefined. Unlike the t distribution's p, it does not treat points of
    one cluster as independent. `control` is constant within a cluster, so permuting y permutes the
    residuals of its ranks (Freedman and Lane 1983).
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
