"""grades.csv: accuracy and consistency by what the base model knew."""

import numpy as np
import pandas as pd

from ift_scale.analyse.answers import Answers
from ift_scale.analyse.intervals import of_share
from ift_scale.analyse.panel import NO_OPTIONS, Panels
from ift_scale.records import GRADES

BY_CONFIDENCE = ("known right", "known wrong", "uncertain")
COLUMNS = (
    "setting", "domain", "group", "grade", "questions", "accuracy", "accuracy_low", "accuracy_high", "consistency", "reason"
)  # fmt: skip


def grades_of(base: Answers, threshold: float) -> np.ndarray:
    """SliCK's grade of each question where the probe gave one, else by confidence; shape (Q,), None where it was not asked."""
    columns = base.columns
    by_confidence = np.where(columns.confidence <= threshold, "uncertain", np.where(columns.correct == 1, *BY_CONFIDENCE[:2]))
    found = np.where(columns.grade.isna(), by_confidence, columns.grade).astype(object)
    found[columns.correct.isna().to_numpy()] = None
    return found


def grade_table(panels: Panels, threshold: float, level: float) -> pd.DataFrame:
    """By grade, the mean over seeds and domains (those that have the grade), with a bootstrap interval over seeds and questions."""
    grade_Q = {panel.key: grades_of(panel.base, threshold) for panel in panels}
    drawn = {
        (panel.key, grade): panels.resamples[panel.group].draw(panel.domain, panel.values["accuracy"], grade_Q[panel.key] == grade)
        for panel in panels
        for grade in set(grade_Q[panel.key]) - {None}
    }
    rows = []
    for setting in panels.settings:
        for name, domains in panels.choices:
            for group in panels.groups:
                for grade in (*GRADES, *BY_CONFIDENCE):
                    found = [p for p in panels.chosen(domains, group, setting) if (p.key, grade) in drawn]
                    made = panels.resamples[group].combine([drawn[p.key, grade].of(p.rows(setting)) for p in found])
                    if made is None:
                        continue
                    ids = {q for p in found for q in p.questions[grade_Q[p.key] == grade]}
                    kept = [p.of(setting, "consistency")[:, grade_Q[p.key] == grade] for p in found]
                    kept = [values for values in kept if np.isfinite(values).any()]
                    row = {"setting": setting, "domain": name, "group": group, "grade": grade, "questions": len(ids)}
                    row |= of_share(made, len(ids), level).columns("accuracy")
                    row["consistency"] = float(np.mean([np.nanmean(values) for values in kept])) if kept else None
                    rows.append(row | {"reason": "" if kept else NO_OPTIONS})
    return pd.DataFrame(rows, columns=list(COLUMNS))
