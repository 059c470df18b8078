"""arms.csv, settings.csv and base.csv: accuracy, and how much of what the base model answered is kept."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.intervals import (
    CORRELATION,
    SHARE,
    UNBOUNDED,
    Measure,
    columns,
    mean_columns,
    wilson,
)
from ift_scale.analyse.panel import NO_OPTIONS, Panel, Panels, num_questions
from ift_scale.treatments import consistency_ratio, unknown_ratio

MEASURES: dict[str, Measure] = {
    "accuracy": SHARE,
    "consistency": CORRELATION,
    "kl": UNBOUNDED,
    "agreement": SHARE,
}
SEEDS_AND_QUESTIONS, QUESTIONS = "seeds and questions", "questions"
"""What a mean's interval is over: questions alone with one seed, and then it is about these very models."""


def ratio_of(setting: str) -> float | None:
    """Of a mixture and its ends: the share that is consistent, or unknown."""
    ratio = consistency_ratio(setting)
    return unknown_ratio(setting) if ratio is None else ratio


def arm_table(panels: Panels, level: float) -> pd.DataFrame:
    """One row an arm and group, with Wilson's interval; a measure is empty where no question has options."""
    rows = []
    for panel in panels:
        means = {name: _means(panel.values[name]) for name in (*list(MEASURES)[1:], "letter_mass")}
        right_A = panel.values["accuracy"].sum(1)
        for number, arm in enumerate(panel.arms):
            row: dict[str, Any] = {
                "domain": panel.domain,
                "setting": arm.setting,
                "seed": arm.seed,
                "group": panel.group,
            }
            right = wilson(int(right_A[number]), len(panel.questions), level)
            row |= {"questions": len(panel.questions)} | columns("accuracy", right.value, right)
            row |= {name: m[number] for name, m in means.items()}
            rows.append(row | {"reason": NO_OPTIONS if row["consistency"] is None else ""})
    return pd.DataFrame(rows)


def _means(values_AQ: np.ndarray) -> list[float | None]:
    """Of each row the mean of what is there, None where nothing is."""
    there_AQ = np.isfinite(values_AQ)
    sums, counts = np.where(there_AQ, values_AQ, 0).sum(1), there_AQ.sum(1)
    return [
        float(total / count) if count else None for total, count in zip(sums, counts, strict=True)
    ]


def setting_table(panels: Panels, level: float) -> pd.DataFrame:
    """A setting's means over seeds, for each domain and for all that it has, with intervals over seeds and questions (with one seed
    over questions: `interval_over`).

    Where some setting lacks a domain, rows of the domain `shared` are over those that every setting has. A measure may have fewer
    domains than the row (free questions have no consistency): `consistency_domains` and the like count them.
    """
    rows = []
    for setting in panels.settings:
        shared = [place for place in panels.shared_places() if setting in place[2][0].settings]
        for name, group, found in [*panels.places(setting), *shared]:
            rows.append(
                {"setting": setting, "domain": name, "group": group}
                | _means_of(panels, found, setting, level)
            )
    return pd.DataFrame(rows)


def _means_of(panels: Panels, found: list[Panel], setting: str, level: float) -> dict[str, Any]:
    seeds = min(len(p.seeds(setting)) for p in found)
    row: dict[str, Any] = {
        "seeds": seeds,
        "questions": num_questions(found),
        **panels.coverage(found),
    }
    row |= {
        "ratio": ratio_of(setting),
        "interval_over": QUESTIONS if seeds == 1 else SEEDS_AND_QUESTIONS,
    }
    reasons = []
    for name, measure in MEASURES.items():
        made = panels.estimate(found, setting, name, measure)
        row |= mean_columns(name, made, level)
        if name != "accuracy":
            row[f"{name}_domains"] = made.domains if made else 0
        reasons += [NO_OPTIONS if made is None else made.missing_over_questions]
    return row | {"reason": "; ".join(dict.fromkeys(filter(None, reasons)))}


def base_table(panels: Panels, level: float) -> pd.DataFrame:
    """The base model's few-shot accuracy on each domain's groups; questions that it was not asked are left out."""
    rows = []
    for panel in panels:
        base = panel.base.columns[panel.base.columns.correct.notna()]
        if len(base):
            row = {"domain": panel.domain, "group": panel.group, "questions": len(base)}
            right = wilson(int(base.correct.sum()), len(base), level)
            rows.append(
                row
                | columns("accuracy", right.value, right)
                | {"confidence": base.confidence.mean()}
            )
    names = (
        "domain",
        "group",
        "questions",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "confidence",
    )
    return pd.DataFrame(rows, columns=list(names))
