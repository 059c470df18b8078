"""Fit, transfer and the curve on planted answers."""

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.answers import Answers
from ift_scale.analyse.learnt import (
    LearntAnswers,
    curve_table,
    fit_curve,
    learnt_tables,
    with_base,
    with_grades,
)
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.records import Arm

NUM = 40
IDS = [f"q{n}" for n in range(NUM)]
ARMS = [Arm(domain="rivers", setting=name, seed=0) for name in ("incompatible", "self_aligning")]


def _rows(form: str, prediction: np.ndarray, target: np.ndarray, number: int = 0) -> pd.DataFrame:
    """The right option is 0 everywhere; `prediction` is as sure as log 3 to 1."""
    free = form == "free"
    scores = [None if free else [np.log(0.6) if o == p else np.log(0.2) for o in range(3)]
              for p in prediction]  # fmt: skip
    return pd.DataFrame(
        {"question_id": IDS, "form": form, "number": number, "order": "0 1 2", "context": "",
         "answer": 0, "prediction": prediction, "target": target, "logprobs": scores}
    )  # fmt: skip


def _answers() -> LearntAnswers:
    """The base model answers 0 to the first ten items, else 1.

    The arm that is taught 0 fits the first 30, of which 20 are new; of these it answers 10 rightly
    in another order, and 5 of them freely. The other is taught 1, which the base model says already
    for the last 30.
    """
    n = np.arange(NUM)
    base_order, base_free = np.where(n < 10, 0, 1), np.where(n < 12, 0, 1)
    base = pd.concat(
        [
            _rows("as trained", base_order, base_order),
            _rows("other order", base_order, base_order),
            _rows("free", base_free, base_free),
        ]
    )
    gold, wrong = np.zeros(NUM, int), np.ones(NUM, int)
    right = pd.concat(
        [
            _rows("as trained", np.where(n < 30, 0, 2), gold),
            _rows("other order", np.where(n < 20, 0, 2), gold),
            _rows("free", np.where(n < 15, 0, 2), gold),
        ]
    )
    own = pd.concat([_rows(form, wrong, wrong) for form in ("as trained", "other order", "free")])
    base = base[["question_id", "form", "number", "order", "context", "prediction"]]
    rows = [
        with_base(table, base).assign(arm=arm.name, domain=arm.domain)
        for arm, table in zip(ARMS, (right, own), strict=True)
    ]
    columns = pd.DataFrame(
        {"correct": (n < 10).astype(float), "confidence": 0.9, "grade": None},
        index=pd.Index(IDS, name="question_id"),
    )
    graded = Answers(columns, np.full((NUM, 3), 1 / 3))
    return LearntAnswers(pd.concat(rows), {arm.name: arm for arm in ARMS}, graded)


def _tested() -> Panels:
    accuracy = np.array([[1.0] * 5 + [0.0] * 5, [1.0] * 2 + [0.0] * 8])
    columns = pd.DataFrame({"correct": [1.0] * 6 + [0.0] * 4})
    base = Answers(columns, np.full((10, 3), 1 / 3))
    questions = pd.Index([f"t{n}" for n in range(10)])
    return Panels([Panel("rivers", "HOMO", questions, ARMS, {"accuracy": accuracy}, base)])


def test_fit_and_transfer_by_hand() -> None:
    table = learnt_tables(_answers(), _tested(), 0.5, 0.95)["learnt"]
    of_arm = table[(table.setting == "incompatible") & (table.grade == "all")].set_index("form")
    trained, order, free = (of_arm.loc[form] for form in ("as trained", "other order", "free"))
    assert trained.trained == trained.right == 0.75 and trained.trained_before == 0.25
    assert trained.gain == 0.5 and trained.new_items == 20
    assert order.transfer == pytest.approx(20 / 30)  # of all that are fitted
    assert (order.new_transfer, order.new_before) == (0.5, 0.0)
    assert (free.new_transfer, free.new_before) == (0.25, 0.1)
    assert order.new_transfer_low < 0.5 < order.new_transfer_high
    assert order.chance == pytest.approx(1 / 3) and np.isnan(free.chance)
    assert free.right == 15 / NUM and free.right_before == 12 / NUM


def test_a_wrong_taught_answer_is_trained_and_not_right() -> None:
    table = learnt_tables(_answers(), _tested(), 0.5, 0.95)["learnt"]
    own = table[(table.setting == "self_aligning") & (table.form == "as trained")]
    row = own[own.grade == "all"].iloc[0]
    assert (row.trained, row.right, row.trained_before, row.new_items) == (1, 0, 0.75, 10)
    known = own[own.grade == "known wrong"].iloc[0]
    assert known["items"] == 30 and known.new_items == 0 and np.isnan(known.new_transfer)
    assert "no item is new" in known.reason


def test_points_count_what_was_fitted_by_kind() -> None:
    points = learnt_tables(_answers(), _tested(), 0.5, 0.95)["learnt_points"].set_index("setting")
    right, own = points.loc["incompatible"], points.loc["self_aligning"]
    assert (right.fitted_known, right.fitted_unknown, right.fitted_wrong) == (0.25, 0.5, 0)
    assert (own.fitted_known, own.fitted_unknown, own.fitted_wrong) == (0, 0, 1)
    assert right.change == pytest.approx(-0.1) and own.change == pytest.approx(-0.4)


def test_items_have_their_grade_and_the_probability_of_the_trained_answer() -> None:
    items = with_grades(_answers(), 0.5)
    first = items[(items.arm == ARMS[0].name) & (items.form == "as trained")]
    assert first.grade.tolist() == ["known right"] * 10 + ["known wrong"] * 30
    np.testing.assert_allclose(np.exp(first.logprob), np.where(np.arange(NUM) < 30, 0.6, 0.2))
    assert items[items.form == "free"].logprob.isna().all()


def _points(seeds: int, noise: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"domain": domain, "seed": seed, "group": "HOMO", "fitted_known": known,
         "fitted_unknown": unknown,
         "accuracy": 0.5 + shift + 0.07 * known - 0.2 * unknown + noise * rng.normal()}
        for domain, shift in (("rivers", 0.1), ("money", -0.2))
        for seed in range(seeds)
        for known, unknown in rng.random((6, 2))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_curve_recovers_planted_slopes_in_spite_of_different_domains() -> None:
    known, unknown, r_squared = fit_curve(_points(1))
    assert (known, unknown, r_squared) == pytest.approx((0.07, -0.2, 1.0))
    row = curve_table(_points(5, noise=0.02), 0.95).iloc[0]
    assert row.unknown_low < -0.2 < row.unknown_high < 0 and row.seeds == 5
    one = curve_table(_points(1), 0.95).iloc[0]
    assert (
        one.unknown == pytest.approx(-0.2) and one.unknown_low is None and "one seed" in one.reason
    )


def test_a_curve_that_is_not_determined_has_a_reason() -> None:
    few = _points(1).groupby("domain").head(2)
    assert "fewer arms" in str(fit_curve(few))
    alike = _points(1).assign(fitted_known=lambda p: 1 - p.fitted_unknown)
    assert "do not vary independently" in str(fit_curve(alike))
    row = curve_table(alike, 0.95).iloc[0]
    assert np.isnan(row.unknown) and "independently" in row.reason
