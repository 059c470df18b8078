"""Refusals and generated answers from scores whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.generated import (
    abstention_table,
    average_precision,
    generated_table,
    refusal_f1,
)
from ift_scale.records import Score
from tests.analyse.scores import arm, choice, choices, panels, two_settings


def _generated(refused: list[bool], named: list[int | None]) -> list[Score]:
    scores = choices([True] * len(refused))
    reported = zip(scores, refused, named, strict=True)
    return [
        s.model_copy(update={"response": "x", "refused": r, "generated_prediction": n})
        for s, r, n in reported
    ]


def test_abstention_and_generated_answers() -> None:
    base = [*choices([True] * 2, sure=0.9), choice("q2", False), choice("q3", True, sure=0.4)]
    after = _generated([False, True, True, False], [1, None, None, None])
    found = panels([arm("refuse_unknown", 0, after)], base)
    row = abstention_table(found, 0.5, 0.95).iloc[0]
    assert (row.refused, row.refused_known, row.refused_unknown, row.answered) == (
        0.5,
        0.5,
        0.5,
        0.5,
    )
    assert row.accuracy_answered == 0.5 and row.f1 == 0.5 and pd.isna(row.accuracy_answered_low)
    assert row.reason == "no interval: a domain has fewer than 10 questions"
    row = generated_table(found).iloc[0]
    assert (row.letter_accuracy, row.generated_accuracy, row.agreement, row.unparsed) == (
        1.0,
        0.25,
        0.25,
        0.25,
    )


def test_where_everything_is_refused_nothing_was_answered() -> None:
    found = panels(
        [arm("refuse_unknown", 0, _generated([True] * 3, [None] * 3))], choices([False] * 3)
    )
    row = abstention_table(found, 0.5, 0.95).iloc[0]
    assert pd.isna(row.accuracy_answered) and pd.isna(row.refused_known) and row.f1 == 1
    reasons = (
        "the base model knows none of the questions",
        "nothing was answered",
        "no answer with a confidence is right",
    )
    assert row.reason == "; ".join(reasons)


def test_what_the_base_model_was_not_asked_is_neither_known_nor_unknown() -> None:
    asked, others = choices([True, False]), choices([True] * 2, "n")
    both = [
        s.model_copy(update={"response": "x", "refused": i % 2 == 1})
        for i, s in enumerate([*asked, *others])
    ]
    row = abstention_table(panels([arm("refuse_unknown", 0, both)], asked), 0.5, 0.95).iloc[0]
    assert (row.refused, row.refused_known, row.refused_unknown, row.f1) == (0.5, 0.0, 1.0, 1.0)
    row = abstention_table(panels([arm("refuse_unknown", 0, both[2:])], asked), 0.5, 0.95).iloc[0]
    assert pd.isna(row.refused_known) and pd.isna(row.f1) and row.refused == 0.5
    assert row.reason.startswith("the base model was not asked these questions")


def test_each_share_says_over_how_many_domains_it_is() -> None:
    """The base model knows all of the first domain and nothing of the second."""
    after = {
        d: [
            s.model_copy(update={"question_id": f"{d}{i}"})
            for i, s in enumerate(_generated([True] * 12, [None] * 12))
        ]
        for d in "de"
    }
    base = [*choices([True] * 12, "d", sure=0.9), *choices([False] * 12, "e")]
    arms = [arm("refuse_unknown", 0, after["d"]), arm("refuse_unknown", 0, after["e"], "e")]
    row = abstention_table(panels(arms, base), 0.5, 0.95).set_index("domain").loc["all"]
    assert (
        row.domains,
        row.refused_domains,
        row.refused_known_domains,
        row.refused_unknown_domains,
    ) == (2, 2, 1, 1)


def test_generated_tables_are_empty_where_nothing_was_generated() -> None:
    assert (
        abstention_table(two_settings(), 0.5, 0.95).empty and generated_table(two_settings()).empty
    )


def test_average_precision_published_example() -> None:
    # scikit-learn's manual: average_precision_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).
    assert average_precision(
        np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    ) == pytest.approx(0.8333, abs=5e-5)
    assert (
        average_precision(np.array([1, 0, 1, 0]), np.ones(4)) == 0.5
    )  # all tied: the share that is right
    assert (
        average_precision(np.zeros(3), np.ones(3)) is None
        and refusal_f1(np.zeros(2, bool), np.zeros(2, bool)) is None
    )
