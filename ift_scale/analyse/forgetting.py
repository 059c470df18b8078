"""forgetting.csv and forgetting_fit.csv: an arm's divergence from the base and what it forgets.

Both sides are asked 0-shot in the same template, so the change of prompt is in neither. After "RL's
Razor" (Shenfeld, Pari and Agrawal 2025, arXiv 2509.04259), which explains forgetting by the forward
KL divergence from the base model on the new task, mean over x of KL(base || arm). Here the
distributions are those over a question's options, and the new task is the arm's domain.
"""

from typing import Any

import numpy as np
import pandas as pd
import scipy

from ift_scale.analyse.panel import Panel, Panels
from ift_scale.treatments import POOLED

OWN, OTHER = "HOMO", "OOD"
KLS = ("kl_own", "kl_other")
POINTS = ("domain", "setting", "seed", *KLS, "forgotten")
FITS = tuple(
    "measure arms domains slope slope_low slope_high intercept r_squared r_squared_quadratic "
    "reason".split()
)
_FEWEST = 3
"""Points that a line needs per domain, and that a quadratic needs at least."""


def forgetting_tables(panels: Panels, level: float) -> dict[str, pd.DataFrame]:
    """Returns the tables by name."""
    points = point_table(panels)
    return {"forgetting": points, "forgetting_fit": fit_table(points, level)}


def point_table(panels: Panels) -> pd.DataFrame:
    """Returns one row per arm of a single domain.

    `kl_own`, `kl_other`: mean KL(base || arm) on the test questions of the arm's domain (HOMO) and
    of the other domains (OOD), nats; `forgotten`: the base model's 0-shot accuracy on OOD minus the
    arm's.
    """
    rows: list[dict[str, Any]] = []
    by_key = {panel.key: panel for panel in panels}
    for domain in panels.domains:
        own, other = by_key.get((domain, OWN)), by_key.get((domain, OTHER))
        if domain == POOLED or own is None or other is None:
            continue
        for number, arm in enumerate(other.arms):
            there = [n for n, asked in enumerate(own.arms) if asked == arm]
            row: dict[str, Any] = {"domain": domain, "setting": arm.setting, "seed": arm.seed}
            row["kl_own"] = _mean(own, "content_kl", there[0]) if there else np.nan
            row["kl_other"] = _mean(other, "content_kl", number)
            rows.append(row | {"forgotten": -_mean(other, "content_change", number)})
    return pd.DataFrame(rows, columns=list(POINTS)).dropna(subset=["forgotten"])


def _mean(panel: Panel, name: str, row: int) -> float:
    values_Q = panel.values[name][row]
    there_Q = np.isfinite(values_Q)
    return float(values_Q[there_Q].mean()) if there_Q.any() else float("nan")


def fit_table(points: pd.DataFrame, level: float) -> pd.DataFrame:
    """Returns one row per measure of KL: lines of `forgotten` against it.

    `slope` is the mean of the slopes within domains, each by least squares, so differences between
    domains have no effect on it. Its interval is Student's t over domains, as for correlations
    (`correlation.within_domains`): arms of one domain share their questions and the base model's
    answers, and are not independent. `intercept` and `r_squared` are of one line through all arms,
    `r_squared_quadratic` of one parabola, which RL's Razor fits.
    """
    rows = []
    for measure in KLS if len(points) else ():
        part = points.dropna(subset=[measure])
        groups = [own for _, own in part.groupby("domain", sort=False)]
        row: dict[str, Any] = {"measure": measure, "arms": len(part), "domains": len(groups)}
        rows.append(row | _fit(part, groups, measure, level))
    return pd.DataFrame(rows, columns=list(FITS))


def _fit(
    part: pd.DataFrame, of_domains: list[pd.DataFrame], measure: str, level: float
) -> dict[str, Any]:
    short = [str(own.domain.iloc[0]) for own in of_domains if own[measure].nunique() < _FEWEST]
    if short or not of_domains:
        names = ", ".join(short) or "every domain"
        return {"reason": f"no line: {names} has fewer than {_FEWEST} arms with different KL"}
    slopes = np.array([np.polyfit(own[measure], own.forgotten, 1)[0] for own in of_domains])
    x, y = part[measure].to_numpy(), part.forgotten.to_numpy()
    row: dict[str, Any] = {"slope": float(slopes.mean()), "reason": ""}
    row |= {"intercept": float(np.polyfit(x, y, 1)[1])}
    row |= {"r_squared": _explained(x, y, 1), "r_squared_quadratic": _explained(x, y, 2)}
    if np.ptp(y) == 0:
        return row | {"reason": "no share explained: every arm forgets the same"}
    if len(slopes) == 1:
        return row | {"reason": f"no interval: {of_domains[0].domain.iloc[0]} is the only domain"}
    half = scipy.special.stdtrit(len(slopes) - 1, (1 + level) / 2) * scipy.stats.sem(slopes)
    return row | {"slope_low": row["slope"] - half, "slope_high": row["slope"] + half}


def _explained(x: np.ndarray, y: np.ndarray, degree: int) -> float | None:
    """Returns the share of the variance of y that a polynomial of x explains, R squared."""
    if np.ptp(y) == 0:
        return None
    left = y - np.polyval(np.polyfit(x, y, degree), x)
    return float(1 - (left @ left) / ((y - y.mean()) @ (y - y.mean())))
