"""Transitions and grades from scores whose answer is known."""

import numpy as np
import pandas as pd

from ift_scale.analyse.grades import grade_table
from ift_scale.analyse.transitions import transition_table, transitions
from tests.analyse.scores import arm, choices, panels, rows_of, two_settings


def test_transitions() -> None:
    before, after = np.array([1.0, 1, 0, 0, np.nan]), np.array([[1.0, 0, 1, 0, 1], [1, 1, 1, 0, 1]])
    assert transitions(before, after).tolist() == [3 / 8, 1 / 8, 2 / 8, 2 / 8]
    row = transition_table(two_settings()).set_index("setting").loc["incompatible"]
    assert (row.right_right, row.right_wrong, row.lost) == (0.5, 0.5, 0.5)
    assert (
        pd.isna(row.gained)
        and row.reason == "the base model had no answer that was wrong, so none could be gained"
    )


def test_grades_by_confidence_and_by_slick() -> None:
    base = (
        choices([True] * 12, sure=0.9)
        + choices([False] * 12, "w", sure=0.9)
        + choices([True] * 4, "u", sure=0.4)
    )
    after = (
        choices([True, True, True, False] * 3)
        + choices([False] * 12, "w")
        + choices([True, False] * 2, "u")
    )
    table = grade_table(panels([arm("harmonious", 0, after)], base), 0.5, 0.95).set_index("grade")
    assert table.accuracy.to_dict() == {"known right": 0.75, "known wrong": 0.0, "uncertain": 0.5}
    assert (
        table.questions.to_dict() == {"known right": 12, "known wrong": 12, "uncertain": 4}
        and table.consistency.notna().all()
    )
    assert (
        table.loc["known wrong"].accuracy_high > 0.2
    )  # nothing varies, and still it is not certain
    few = table.loc["uncertain"]
    assert (
        pd.isna(few.accuracy_low)
        and few.reason == "no interval: a domain has fewer than 10 questions"
    )
    graded = [
        score.model_copy(update={"grade": "MaybeKnown" if i else "Unknown"})
        for i, score in enumerate(base)
    ]
    table = grade_table(panels([arm("harmonious", 0, after)], graded), 0.5, 0.95)
    assert table.grade.to_list() == ["MaybeKnown", "Unknown"] and table.questions.to_list() == [
        27,
        1,
    ]


def test_a_grade_is_over_the_domains_that_have_it() -> None:
    base = (
        choices([True] * 12, "d", sure=0.9)
        + choices([False] * 12, "e", sure=0.9)
        + choices([True], "f", sure=0.9)
    )
    arms = [
        arm("harmonious", 0, choices([True] * n, d), d) for d, n in (("d", 12), ("e", 12), ("f", 1))
    ]
    table = grade_table(panels(arms, base), 0.5, 0.95)
    row = rows_of(table, domain="all", grade="known right").iloc[0]
    assert (row.domains, row.of_domains, row.over, row.fewest_questions) == (
        2,
        3,
        "d; f",
        1,
    ) and pd.isna(row.accuracy_low)
    assert rows_of(table, domain="all", grade="known wrong").iloc[0].over == "e"
    assert transition_table(panels(arms, base[:12])).set_index("domain").over.to_dict() == {
        "d": "d",
        "all": "d",
    }
