"""Spearman's partial correlation with an interval over domains. Pure functions; what is undefined says why, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

_ROUNDING = 1e-9
_FEWEST_SAMPLES = 0.5


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
    controls = np.reshape(control, (n, -1)).T
    ranks = [scipy.stats.rankdata(column) for column in controls if np.ptp(column) > 0]
    freedom = n - 2 - len(ranks)
    if freedom < 1:
        return Correlation(n, reason=f"{n} points are too few: {3 + len(ranks)} are the least")
    design = np.column_stack([np.ones(n), *ranks])
    left = []
    for name, values in (("the measure", x), ("accuracy", y)):
        if np.ptp(values) == 0:
            return Correlation(n, reason=f"zero variance: {name} is the same in all {n} points")
        ranked = scipy.stats.rankdata(values)
        residual = ranked - design @ np.linalg.lstsq(design, ranked, rcond=None)[0]
        if residual @ residual < _ROUNDING * n**3:
            return Correlation(n, reason=f"zero variance: {name} has none left beside what it is controlled for")
        left.append(residual / np.sqrt(residual @ residual))
    rho = float(np.clip(left[0] @ left[1], -1, 1))
    t = rho * np.sqrt(freedom / max(1 - rho**2, np.finfo(float).eps))
    return Correlation(n, rho, float(2 * scipy.stats.t.sf(abs(t), freedom)))


def clustered(
    x: np.ndarray, y: np.ndarray, control: np.ndarray, clusters: Sequence[str], samples: int, level: float, seed: int
) -> Correlation:
    """The same with a percentile interval of a bootstrap that draws whole clusters (domains): their points are not independent.

    Draws whose correlation is undefined are left out. With few clusters it is too narrow (Cameron, Gelbach and Miller
    2008: below some dozens); with one there is none.
    """
    found = partial_spearman(x, y, control)
    if found.rho is None:
        return found
    labels, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    members = [np.flatnonzero(numbers == i) for i in range(len(labels))]
    if len(labels) == 1:
        return Correlation(found.n, found.rho, found.p, reason=f"no interval: {labels[0]} is the only domain")
    rng = np.random.default_rng(seed)
    drawn_BK = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=samples)
    # Few domains have few different draws (35 of four): each is computed once.
    different, times = np.unique(drawn_BK, axis=0, return_counts=True)
    rhos: list[float] = []
    for counts, often in zip(different, times, strict=True):
        points = np.concatenate([np.tile(rows, count) for rows, count in zip(members, counts, strict=True)])
        rho = partial_spearman(x[points], y[points], control[points]).rho
        rhos += [rho] * int(often) if rho is not None else []
    if len(rhos) < _FEWEST_SAMPLES * samples:
        share = f"{1 - len(rhos) / samples:.0%}"
        return Correlation(found.n, found.rho, found.p, reason=f"no interval: undefined in {share} of the draws of domains")
    low, high = np.quantile(rhos, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(found.n, found.rho, found.p, float(low), float(high))
