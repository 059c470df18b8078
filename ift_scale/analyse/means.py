"""arms.csv, settings.csv and base.csv: accuracy, and how much of what the base model answered is kept."""

import numpy as np
import pandas as pd

from ift_scale.analyse.intervals import Bootstrap, Interval, of_share, wilson
from ift_scale.analyse.panel import NO_OPTIONS, Panels, num_questions
from ift_scale.treatments import consistency_ratio, unknown_ratio

MEASURES = ("accuracy", "consistency", "kl", "agreement")


def ratio_of(setting: str) -> float | None:
    """Of a mixture and its ends: the share that is consistent, or unknown."""
    ratio = consistency_ratio(setting)
    return unknown_ratio(setting) if ratio is None else ratio


def arm_table(panels: Panels, level: float) -> pd.DataFrame:
    """One row an arm and group, with Wilson's interval; a measure is empty where no question has options."""
    rows = []
    for panel in panels:
        means = {name: _means(panel.values[name]) for name in (*MEASURES[1:], "letter_mass")}
        right_A = panel.values["accuracy"].sum(1)
        for number, arm in enumerate(panel.arms):
            row = {"domain": panel.domain, "setting": arm.setting, "seed": arm.seed, "group": panel.group}
            accuracy = wilson(int(right_A[number]), len(panel.questions), level).columns("accuracy")
            row |= {"questions": len(panel.questions)} | accuracy | {name: m[number] for name, m in means.items()}
            rows.append(row | {"reason": NO_OPTIONS if row["consistency"] is None else ""})
    return pd.DataFrame(rows)


def _means(values_AQ: np.ndarray) -> list[float | None]:
    """Of each row the mean of what is there, None where nothing is."""
    there_AQ = np.isfinite(values_AQ)
    sums, counts = np.where(there_AQ, values_AQ, 0).sum(1), there_AQ.sum(1)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def setting_table(panels: Panels, level: float) -> pd.DataFrame:
    """A setting's means over seeds, for each domain and for all, with bootstrap intervals over seeds and questions."""
    rows = []
    for setting in panels.settings:
        for name, domains in panels.choices:
            for group in panels.groups:
                found = panels.chosen(domains, group, setting)
                if not found:
                    continue
                row = {"setting": setting, "domain": name, "group": group, "seeds": min(len(p.seeds(setting)) for p in found)}
                num = num_questions(found)
                row |= {"questions": num, "ratio": ratio_of(setting)}
                for measure in MEASURES:
                    drawn = panels.bootstrap(found, setting, measure)
                    row |= _interval(measure, drawn, num, level).columns(measure) if drawn else dict.fromkeys(_columns(measure))
                rows.append(row | {"reason": NO_OPTIONS if row["consistency"] is None else ""})
    return pd.DataFrame(rows)


def _interval(measure: str, drawn: Bootstrap, num: int, level: float) -> Interval:
    return of_share(drawn, num, level) if measure in ("accuracy", "agreement") else drawn.interval(level)


def _columns(measure: str) -> tuple[str, str, str]:
    return measure, f"{measure}_low", f"{measure}_high"


def base_table(panels: Panels, level: float) -> pd.DataFrame:
    """The base model's few-shot accuracy on each domain's groups; questions that it was not asked are left out."""
    rows = []
    for panel in panels:
        base = panel.base.columns[panel.base.columns.correct.notna()]
        if len(base):
            row = {"domain": panel.domain, "group": panel.group, "questions": len(base)}
            accuracy = wilson(int(base.correct.sum()), len(base), level).columns("accuracy")
            rows.append(row | accuracy | {"confidence": base.confidence.mean()})
    return pd.DataFrame(rows, columns=["domain", "group", "questions", *_columns("accuracy"), "confidence"])
