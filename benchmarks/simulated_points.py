"""Simulated points of domains and ratios, for `simulate_intervals`: rates of findings.

A domain's measure and accuracy depend on the ratio, on the domain, and on noise that neighboring
ratios share, because mixtures of one seed are nested.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from ift_scale.analyse.correlation import partial_spearman, within_domains
from ift_scale.report.verdicts import verdict

LEVEL, PERMUTATIONS = 0.95, 300


@dataclass(frozen=True)
class PointsCase:
    domains: int
    ratios: int
    slope: float = 0.0
    """Effect of the measure on accuracy, in standard deviations of the accuracy's noise x 0.7."""
    slope_sd: float = 0.0
    """Standard deviation of the slope over domains."""
    apart: float = 0.0
    """Standard deviation of the domains' levels, of the measure and of accuracy independently."""
    dependence: float = 0.0
    """Correlation of the noise of neighboring ratios (first-order autoregression)."""


def points(
    case: PointsCase, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Returns the measure, accuracy and base accuracy of each point, shape (D R,), and domains."""
    shape = (case.domains, case.ratios)
    level_x, level_y = case.apart * rng.standard_normal((2, case.domains, 1))
    slopes = case.slope + case.slope_sd * rng.standard_normal((case.domains, 1))
    measure = np.linspace(-1.2, 1.2, case.ratios) + 0.4 * _noise(shape, case.dependence, rng)
    accuracy = slopes * measure + 0.7 * _noise(shape, case.dependence, rng)
    base = level_y + 0.3 * rng.standard_normal((case.domains, 1))
    names = [f"d{domain}" for domain in range(case.domains) for _ in range(case.ratios)]
    flat = (level_x + measure, level_y + accuracy, np.broadcast_to(base, shape))
    x, y, control = (values.ravel() for values in flat)
    return x, y, control, names


def _noise(shape: tuple[int, int], dependence: float, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.standard_normal(shape)
    for ratio in range(1, shape[1]):
        fresh = (1 - dependence**2) ** 0.5 * drawn[:, ratio]
        drawn[:, ratio] = dependence * drawn[:, ratio - 1] + fresh
    return drawn


def jackknife(x: np.ndarray, y: np.ndarray, base: np.ndarray, names: list[str]) -> bool:
    """Returns True if the previous interval, of the partial correlation, excludes zero.

    Jackknife over domains on Fisher's z, t with domains - 1 degrees of freedom (MacKinnon, Nielsen
    and Webb 2023), the variance at least 1.06 / (n - 4) (Fieller, Hartley and Pearson 1957).
    """
    domains, number = np.unique(names, return_inverse=True)
    kept = [slice(None), *(number != i for i in range(len(domains)))]
    found = [partial_spearman(x[k], y[k], base[k]).rho or 0.0 for k in kept]
    z, *without = np.arctanh(np.clip(found, -1 + 1e-6, 1 - 1e-6))
    variance = (len(domains) - 1) * np.var(without)
    error = max(variance, 1.06 / (len(x) - 4)) ** 0.5
    return bool(abs(z) > scipy.special.stdtrit(len(domains) - 1, (1 + LEVEL) / 2) * error)


def simulate_points(case: PointsCase, trials: int, seed: int = 0) -> dict[str, float]:
    """Returns the shares of trials in which each method reports a relation.

    `excludes_zero`: the interval over domains; `p_within`: the permutation test; `verdict`: both;
    `p`: the t distribution's p of the partial correlation; `jackknife`: the previous interval.
    """
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("excludes_zero", "p_within", "verdict", "p", "jackknife"), 0)
    for trial in range(trials):
        x, y, base, names = points(case, rng)
        found = within_domains(x, y, names, LEVEL, PERMUTATIONS, trial)
        judged = verdict(found.low, found.high, 3, found.p, LEVEL)
        assert found.low is not None and found.high is not None and found.p is not None
        counts["excludes_zero"] += found.low > 0 or found.high < 0
        counts["p_within"] += found.p <= 1 - LEVEL
        counts["verdict"] += judged in ("holds", "does not hold")
        counts["p"] += (partial_spearman(x, y, base).p or 0.0) <= 1 - LEVEL
        counts["jackknife"] += jackknife(x, y, base, names)
    return {name: count / trials for name, count in counts.items()}
