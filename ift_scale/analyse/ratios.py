"""Between incompatible (ratio 0) and self-aligning (1): correlation_points.csv, correlation.csv and best_ratio.csv."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.correlation import clustered, within_domains
from ift_scale.analyse.intervals import CORRELATION, ONE_SEED, SHARE, UNBOUNDED
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.config import AnalyseConfig
from ift_scale.treatments import POOLED, consistency_ratio

FEWEST = 3
"""Ratios below which there is no line to speak of, and the tables stay empty."""
MEASURES = ("consistency", "kl")
POINTS = (
    "domain",
    "setting",
    "ratio",
    "group",
    "seeds",
    "consistency",
    "kl",
    "accuracy",
    "base_accuracy",
)
BEST = (
    "domain", "group", "seeds", "domains", "of_domains", "over", "best_ratio", "accuracy", "best_other", "difference", "low",
    "high", "reason",
)  # fmt: skip
CORRELATIONS = (
    "measure",
    "group",
    "n",
    "seeds",
    "domains",
    "of_domains",
    "over",
    "rho",
    "p",
    "p_within",
    "low",
    "high",
    "reason",
)
END = "self_aligning"
_NO_END = "no arm of ratio 1 (self-aligning) to compare with"


def on_the_line(settings: list[str]) -> list[str]:
    """The settings that have a consistency ratio, by rising ratio."""
    found = {
        setting: ratio for setting in settings if (ratio := consistency_ratio(setting)) is not None
    }
    return sorted(found, key=lambda setting: found[setting])


def point_table(panels: Panels) -> pd.DataFrame:
    """A point a domain and ratio, of each group: means over seeds and questions. Arms across domains are left out."""
    rows: list[dict[str, Any]] = []
    line = on_the_line(panels.settings)
    for panel in panels if len(line) >= FEWEST else []:
        base = panel.base.columns.correct
        for setting in line if panel.domain != POOLED and base.notna().any() else []:
            if setting in panel.settings:
                row = {
                    "domain": panel.domain,
                    "setting": setting,
                    "ratio": consistency_ratio(setting),
                    "group": panel.group,
                }
                row["seeds"] = len(panel.seeds(setting))
                for name, measure in (
                    ("accuracy", SHARE),
                    ("consistency", CORRELATION),
                    ("kl", UNBOUNDED),
                ):
                    made = panels.estimate([panel], setting, name, measure)
                    row[name] = made.value if made else np.nan
                rows.append(row | {"base_accuracy": float(base.mean())})
    table = pd.DataFrame(rows, columns=list(POINTS))
    return table[table.consistency.notna()].reset_index(
        drop=True
    )  # free questions have no options to be ranked


def correlation_table(points: pd.DataFrame, config: AnalyseConfig, of_domains: int) -> pd.DataFrame:
    """Spearman's partial correlation of each measure with accuracy, controlling for the base model's, over domains x ratios.

    The interval is about other domains, and about other seeds by what differs between domains; with one seed there is none.
    `p_within` is the permutation test's. `reason` says in words what is undefined.
    """
    rows = []
    for group in dict.fromkeys(points.group):
        part = points[points.group == group]
        names = list(dict.fromkeys(part.domain))
        about = {
            "group": group,
            "seeds": part.seeds.min(),
            "domains": len(names),
            "of_domains": of_domains,
            "over": "; ".join(names),
        }
        for measure in MEASURES:
            x, y, base = (part[name].to_numpy() for name in (measure, "accuracy", "base_accuracy"))
            found = clustered(x, y, base, part.domain.to_list(), config.confidence_level)
            p_within = within_domains(
                x, y, base, part.domain.to_list(), config.bootstrap_samples, config.seed
            )
            row = about | {
                "measure": measure,
                "n": found.n,
                "rho": found.rho,
                "p": found.p,
                "p_within": p_within,
            }
            row |= {"low": found.low, "high": found.high, "reason": found.reason}
            if part.seeds.min() == 1:
                row |= {"low": None, "high": None, "reason": found.reason or ONE_SEED}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(CORRELATIONS)).sort_values(
        "measure", kind="stable", ignore_index=True
    )


def best_ratio_table(panels: Panels, level: float) -> pd.DataFrame:
    """The ratio of the best accuracy, and whether the best of the others differs from ratio 1 (`difference`: others minus it).

    Over the domains that have ratio 1 (all, where none has it); of the other ratios those that all of these domains have.

    That one was chosen on the same questions, so its difference is flattered. The interval is of the largest true difference, and
    allows for the choice: every ratio's own is made at 1 - (1 - level) / number of ratios (Bonferroni), so with all of them at
    once the largest lies between the largest lower and the largest upper end.
    """
    rows = []
    line = on_the_line(panels.settings)
    for name, group, every in panels.places() if len(line) >= FEWEST else []:
        there = [panel for panel in every if END in panel.settings] or every
        shared = [setting for setting in line if all(setting in panel.settings for panel in there)]
        if len(shared) >= FEWEST:
            row = {"domain": name, "group": group} | panels.coverage(there)
            rows.append(row | _best(panels, there, shared, level))
    return pd.DataFrame(rows, columns=list(BEST))


def _best(panels: Panels, there: list[Panel], line: list[str], level: float) -> dict[str, Any]:
    accuracy = {
        setting: float(np.mean([p.of(setting, "accuracy").mean() for p in there]))
        for setting in line
    }
    best = max(line, key=lambda setting: accuracy[setting])
    row: dict[str, Any] = {"best_ratio": consistency_ratio(best), "accuracy": accuracy[best]}
    row["seeds"] = min(len(p.seeds(setting)) for p in there for setting in line)
    if END not in line:
        return row | {"reason": _NO_END}
    # A setting is compared only where it shares a seed with ratio 1 in every one of the domains.
    others = [
        setting for setting in line if setting != END and all(p.seeds(setting, END) for p in there)
    ]
    paired = {
        setting: made
        for setting in others
        if (made := panels.difference(there, setting, END)) is not None
    }
    if not paired:
        return row | {"reason": "no seed that both have"}
    other = max(paired, key=lambda setting: paired[setting].value)
    row |= {"best_other": consistency_ratio(other), "difference": paired[other].value}
    row["seeds"] = min(made.seeds for made in paired.values())
    ends = [made.interval(1 - (1 - level) / len(paired)) for made in paired.values()]
    if not all(ends):
        return row | {"reason": next(made.missing for made in paired.values() if made.missing)}
    return row | {
        "low": max(e.low for e in ends if e),
        "high": max(e.high for e in ends if e),
        "reason": "",
    }
