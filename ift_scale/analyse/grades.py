"""grades.csv: accuracy and consistency by the base model's knowledge of the question."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.answers import Answers
from ift_scale.analyse.intervals import CORRELATION, SHARE, mean_columns
from ift_scale.analyse.panel import NO_OPTIONS, Panel, Panels
from ift_scale.records import GRADES

BY_CONFIDENCE = ("known right", "known wrong", "uncertain")
COLUMNS = tuple(
    "setting domain group grade questions fewest_questions seeds domains of_domains over accuracy "
    "accuracy_low accuracy_high consistency consistency_domains reason".split()
)


def grades_of(base: Answers, threshold: float) -> np.ndarray:
    """Returns the grade of each question, shape (Q,): SliCK's if probed, else by confidence.

    None for questions that the base model was not asked.
    """
    columns = base.columns
    by_confidence = np.where(
        columns.confidence <= threshold,
        "uncertain",
        np.where(columns.correct == 1, *BY_CONFIDENCE[:2]),
    )
    grades = np.where(columns.grade.isna(), by_confidence, columns.grade).astype(object)
    grades[columns.correct.isna().to_numpy()] = None
    return grades


def grade_table(panels: Panels, threshold: float, level: float) -> pd.DataFrame:
    """Returns the means by grade, over seeds and over the domains that have the grade (`over`).

    Intervals are over seeds and questions (over questions only with one seed). There is none if a
    domain has too few questions of the grade.
    """
    grade_Q = {panel.key: grades_of(panel.base, threshold) for panel in panels}
    rows = []
    for setting in panels.settings:
        for name, group, there in panels.cells(setting):
            for grade in (*GRADES, *BY_CONFIDENCE):
                chosen = [p for p in there if (grade_Q[p.key] == grade).any()]
                if chosen:
                    among = {p.domain: grade_Q[p.key] == grade for p in chosen}
                    row = {"setting": setting, "domain": name, "group": group, "grade": grade}
                    rows.append(row | _graded(panels, chosen, setting, among, level))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _graded(
    panels: Panels, chosen: list[Panel], setting: str, among: dict[str, np.ndarray], level: float
) -> dict[str, Any]:
    right = panels.estimate(chosen, setting, "accuracy", SHARE, among)
    kept = panels.estimate(chosen, setting, "consistency", CORRELATION, among)
    assert right is not None, "only domains with questions of the grade are selected"
    return {
        "questions": len({q for p in chosen for q in p.questions[among[p.domain]]}),
        "fewest_questions": right.fewest_questions,
        "seeds": right.seeds,
        **panels.coverage(chosen),
        **mean_columns("accuracy", right, level),
        "consistency": kept and kept.value,
        "consistency_domains": kept.domains if kept else 0,
        "reason": "; ".join(
            filter(None, [right.missing_over_questions, "" if kept else NO_OPTIONS])
        ),
    }
