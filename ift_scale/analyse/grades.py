"""grades.csv: accuracy and consistency by what the base model knew."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.answers import Answers
from ift_scale.analyse.intervals import CORRELATION, SHARE, mean_columns
from ift_scale.analyse.panel import NO_OPTIONS, Panel, Panels
from ift_scale.records import GRADES

BY_CONFIDENCE = ("known right", "known wrong", "uncertain")
COLUMNS = (
    "setting", "domain", "group", "grade", "questions", "fewest_questions", "seeds", "domains", "of_domains", "over", "accuracy",
    "accuracy_low", "accuracy_high", "consistency", "consistency_domains", "reason",
)  # fmt: skip


def grades_of(base: Answers, threshold: float) -> np.ndarray:
    """SliCK's grade of each question where the probe gave one, else by confidence; shape (Q,), None where it was not asked."""
    columns = base.columns
    by_confidence = np.where(
        columns.confidence <= threshold,
        "uncertain",
        np.where(columns.correct == 1, *BY_CONFIDENCE[:2]),
    )
    found = np.where(columns.grade.isna(), by_confidence, columns.grade).astype(object)
    found[columns.correct.isna().to_numpy()] = None
    return found


def grade_table(panels: Panels, threshold: float, level: float) -> pd.DataFrame:
    """By grade, the mean over seeds and over the domains that have the grade (`over`).

    The interval is over seeds and questions, with one seed over questions; there is none where a domain has too few questions of
    the grade.
    """
    grade_Q = {panel.key: grades_of(panel.base, threshold) for panel in panels}
    rows = []
    for setting in panels.settings:
        for name, group, there in panels.places(setting):
            for grade in (*GRADES, *BY_CONFIDENCE):
                found = [p for p in there if (grade_Q[p.key] == grade).any()]
                if found:
                    among = {p.domain: grade_Q[p.key] == grade for p in found}
                    row = {"setting": setting, "domain": name, "group": group, "grade": grade}
                    rows.append(row | _graded(panels, found, setting, among, level))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _graded(
    panels: Panels, found: list[Panel], setting: str, among: dict[str, np.ndarray], level: float
) -> dict[str, Any]:
    right = panels.estimate(found, setting, "accuracy", SHARE, among)
    kept = panels.estimate(found, setting, "consistency", CORRELATION, among)
    assert right is not None, "only domains with questions of the grade are chosen"
    return {
        "questions": len({q for p in found for q in p.questions[among[p.domain]]}),
        "fewest_questions": right.fewest_questions,
        "seeds": right.seeds,
        **panels.coverage(found),
        **mean_columns("accuracy", right, level),
        "consistency": kept and kept.value,
        "consistency_domains": kept.domains if kept else 0,
        "reason": "; ".join(
            filter(None, [right.missing_over_questions, "" if kept else NO_OPTIONS])
        ),
    }
