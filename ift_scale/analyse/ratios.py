"""Mixtures from incompatible (ratio 0) to self-aligning (ratio 1).

Tables: correlation_points.csv, correlation.csv, best_ratio.csv.
"""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.correlation import partial_spearman, within_domains
from ift_scale.analyse.intervals import CORRELATION, ONE_SEED, SHARE, UNBOUNDED
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.config import AnalyseConfig
from ift_scale.treatments import POOLED, consistency_ratio

FEWEST = 3
"""Minimum number of ratios; with fewer, the tables are empty."""
MEASURES = ("consistency", "kl")
POINTS = tuple("domain setting ratio group seeds consistency kl accuracy base_accuracy".split())
BEST = tuple(
    "domain group seeds domains of_domains over best_ratio accuracy best_other difference low high "
    "reason".split()
)
CORRELATIONS = tuple(
    "measure group n seeds domains of_domains over rho p rho_within low high p_within "
    "reason".split()
)
END = "self_aligning"
_NO_END = "no arm of ratio 1 (self-aligning) to compare with"


def on_the_line(settings: list[str]) -> list[str]:
    """Returns the settings that have a consistency ratio, in ascending order of it."""
    ratios = {
        setting: ratio for setting in settings if (ratio := consistency_ratio(setting)) is not None
    }
    return sorted(ratios, key=lambda setting: ratios[setting])


def point_table(panels: Panels) -> pd.DataFrame:
    """Returns one point per domain, ratio and group: means over seeds and questions.

    Pooled arms are left out, and so are free questions, which have no options to rank.
    """
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
    return table[table.consistency.notna()].reset_index(drop=True)


def correlation_table(points: pd.DataFrame, config: AnalyseConfig, of_domains: int) -> pd.DataFrame:
    """Returns the rank correlations of each measure with accuracy over domains x ratios.

    `rho` and `p` are the paper's: Spearman's partial correlation, controlling for the base model's
    accuracy. `rho_within` is the mean of the correlations within domains, `low` and `high` its
    interval over domains (none with one seed), `p_within` from its permutation test. `reason`
    explains undefined values.
    """
    rows: list[dict[str, Any]] = []
    for group in dict.fromkeys(points.group):
        part = points[points.group == group]
        domains = part.domain.to_list()
        names = list(dict.fromkeys(domains))
        about = {
            "group": group,
            "seeds": part.seeds.min(),
            "domains": len(names),
            "of_domains": of_domains,
            "over": "; ".join(names),
        }
        for measure in MEASURES:
            x, y, base = (part[name].to_numpy() for name in (measure, "accuracy", "base_accuracy"))
            found = partial_spearman(x, y, base)
            within = within_domains(
                x, y, domains, config.confidence_level, config.bootstrap_samples, config.seed
            )
            row = about | {"measure": measure, "n": found.n, "rho": found.rho, "p": found.p}
            row |= {"rho_within": within.rho, "low": within.low, "high": within.high}
            row |= {"p_within": within.p, "reason": found.reason or within.reason}
            if part.seeds.min() == 1:
                row |= {"low": None, "high": None, "reason": row["reason"] or ONE_SEED}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(CORRELATIONS)).sort_values(
        "measure", kind="stable", ignore_index=True
    )


def best_ratio_table(panels: Panels, level: float) -> pd.DataFrame:
    """Returns the ratio with the best accuracy, and the best other ratio's difference to ratio 1.

    Over the domains that have ratio 1 (all domains if none has it), and over the ratios that all of
    these domains have.

    The best other ratio is chosen on the same questions, so its difference is biased upwards. The
    interval is that of the largest true difference and allows for the choice: each ratio's interval
    has level 1 - (1 - level) / number of ratios (Bonferroni), so that with all of them
    simultaneously the largest difference is between the largest lower and the largest upper limit.
    """
    rows = []
    line = on_the_line(panels.settings)
    for name, group, every in panels.cells() if len(line) >= FEWEST else []:
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
    # A setting is compared only if it shares a seed with ratio 1 in each of the domains.
    others = [
        setting for setting in line if setting != END and all(p.seeds(setting, END) for p in there)
    ]
    paired = {
        setting: made
        for setting in others
        if (made := panels.difference(there, setting, END)) is not None
    }
    if not paired:
        return row | {"reason": "no ratio shares a seed with ratio 1 in every domain"}
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
