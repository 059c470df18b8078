"""Transitions and grades from scores whose answer is known."""

import numpy as np
import pandas as pd

from ift_scale.analyse.grades import grade_table
from ift_scale.analyse.transitions import transition_table, transitions
from tests.analyse.scores import arm, choices, panels, two_settings


def test_transitions() -> None:
    before, after = np.array([1.0, 1, 0, 0, np.nan]), np.array([[1.0, 0, 1, 0, 1], [1, 1, 1, 0, 1]])
    assert transitions(before, after).tolist() == [3 / 8, 1 / 8, 2 / 8, 2 / 8]
    row = transition_table(two_settings()).set_index("setting").loc["incompatible"]
    assert (row.right_right, row.right_wrong, row.lost) == (0.5, 0.5, 0.5)
    assert pd.isna(row.gained) and row.reason == "the base model had no answer that was wrong, so none could be gained"


def test_grades_by_confidence_and_by_slick() -> None:
    base = choices([True] * 4, sure=0.9) + choices([False] * 4, "w", sure=0.9) + choices([True] * 4, "u", sure=0.4)
    after = choices([True, True, True, False]) + choices([False] * 4, "w") + choices([True, False] * 2, "u")
    table = grade_table(panels([arm("harmonious", 0, after)], base), 0.5, 0.95).set_index("grade")
    assert table.accuracy.to_dict() == {"known right": 0.75, "known wrong": 0.0, "uncertain": 0.5}
    assert (table.questions == 4).all() and table.loc["known wrong"].accuracy_high > 0.2 and table.consistency.notna().all()
    graded = [score.model_copy(update={"grade": "MaybeKnown" if i else "Unknown"}) for i, score in enumerate(base)]
    table = grade_table(panels([arm("harmonious", 0, after)], graded), 0.5, 0.95)
    assert table.grade.to_list() == ["MaybeKnown", "Unknown"] and table.questions.to_list() == [11, 1]
