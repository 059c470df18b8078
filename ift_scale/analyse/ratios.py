"""Between incompatible (ratio 0) and self-aligning (1): correlation_points.csv, correlation.csv and best_ratio.csv."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.correlation import clustered
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.config import AnalyseConfig
from ift_scale.treatments import POOLED, consistency_ratio

FEWEST = 3
"""Ratios below which there is no line to speak of, and the tables stay empty."""
MEASURES = ("consistency", "kl")
POINTS = ("domain", "setting", "ratio", "group", "consistency", "kl", "accuracy", "base_accuracy")
BEST = ("domain", "group", "best_ratio", "accuracy", "best_other", "difference", "low", "high", "reason")
_END = "no arm of ratio 1 (self-aligning) to compare with"


def on_the_line(settings: list[str]) -> list[str]:
    """The settings that have a consistency ratio, by rising ratio."""
    found = {setting: ratio for setting in settings if (ratio := consistency_ratio(setting)) is not None}
    return sorted(found, key=lambda setting: found[setting])


def point_table(panels: Panels) -> pd.DataFrame:
    """A point a domain and ratio, of each group: means over seeds and questions. Arms across domains are left out."""
    rows: list[dict[str, Any]] = []
    line = on_the_line(panels.settings)
    for panel in panels if len(line) >= FEWEST else []:
        means = {name: panels.drawn(panel, name).own_R for name in ("accuracy", *MEASURES)}
        base = panel.base.columns.correct
        for setting in line if panel.domain != POOLED and base.notna().any() else []:
            if setting in panel.settings:
                row = {"domain": panel.domain, "setting": setting, "ratio": consistency_ratio(setting), "group": panel.group}
                row |= {name: float(values_R[panel.rows(setting)].mean()) for name, values_R in means.items()}
                rows.append(row | {"base_accuracy": float(base.mean())})
    table = pd.DataFrame(rows, columns=list(POINTS))
    return table[table.consistency.notna()].reset_index(drop=True)  # free questions have no options to be ranked


def correlation_table(points: pd.DataFrame, config: AnalyseConfig) -> pd.DataFrame:
    """Spearman's partial correlation of each measure with accuracy, controlling for the base model's, over domains x ratios.

    The interval draws domains; `reason` says in words what is undefined.
    """
    rows = []
    for group in dict.fromkeys(points.group):
        part = points[points.group == group]
        for measure in MEASURES:
            x, y, base = (part[name].to_numpy() for name in (measure, "accuracy", "base_accuracy"))
            settings = (config.bootstrap_samples, config.confidence_level, config.seed)
            found = clustered(x, y, base, part.domain.to_list(), *settings)
            row = {"measure": measure, "group": group, "n": found.n, "rho": found.rho, "p": found.p}
            rows.append(row | {"low": found.low, "high": found.high, "reason": found.reason, "domains": part.domain.nunique()})
    table = pd.DataFrame(rows, columns=["measure", "group", "n", "rho", "p", "low", "high", "reason", "domains"])
    return table.sort_values("measure", kind="stable").reset_index(drop=True)


def best_ratio_table(panels: Panels, level: float) -> pd.DataFrame:
    """The ratio of the best accuracy, and whether the best of the others differs from ratio 1 (`difference`: others minus it).

    That one was chosen on the same questions, so its difference is flattered. The interval is of the largest true difference, and
    allows for the choice: every ratio's own is made at 1 - (1 - level) / number of ratios (Bonferroni), so with all of them at
    once the largest lies between the largest lower and the largest upper end.
    """
    rows = []
    line = on_the_line(panels.settings)
    for name, domains in panels.choices if len(line) >= FEWEST else []:
        for group in panels.groups:
            there = panels.chosen(domains, group)
            shared = [setting for setting in line if there and all(setting in panel.settings for panel in there)]
            if len(shared) >= FEWEST:
                rows.append({"domain": name, "group": group} | _best(panels, there, shared, level))
    return pd.DataFrame(rows, columns=list(BEST))


def _best(panels: Panels, there: list[Panel], line: list[str], level: float) -> dict[str, Any]:
    def accuracy(setting: str) -> float:
        return float(np.mean([panels.drawn(p, "accuracy").own_R[p.rows(setting)].mean() for p in there]))

    best, end, others = max(line, key=accuracy), line[-1], line[:-1]
    row: dict[str, Any] = {"best_ratio": consistency_ratio(best), "accuracy": accuracy(best)}
    if consistency_ratio(end) != 1:
        return row | {"reason": _END}
    drawn = {setting: panels.difference(there, setting, end) for setting in others}
    paired = {setting: found for setting, found in drawn.items() if found is not None}
    if not paired:
        return row | {"reason": "no seed that both have"}
    other = max(paired, key=lambda setting: paired[setting].value)
    ends = [found.interval(1 - (1 - level) / len(paired)) for found in paired.values()]
    row |= {"best_other": consistency_ratio(other), "difference": paired[other].value}
    return row | {"low": max(e.low for e in ends), "high": max(e.high for e in ends), "reason": ""}
