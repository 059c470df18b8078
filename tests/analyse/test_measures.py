"""Letters, option texts and free answers compared on the same questions."""

import numpy as np
import pyarrow as pa
import pytest

from ift_scale.analyse.answers import ArmScores
from ift_scale.analyse.measures import COLUMNS, MeasureTally, kappa, same_questions
from ift_scale.records import Arm, Question


def _question(id: str, kind: str, text: str, domain: str = "money") -> Question:
    more = {"choices": ["a", "b"], "answer": 0} if kind == "choice" else {"aliases": ["a"]}
    return Question.model_validate(
        {"id": id, "domain": domain, "subject": domain, "collection": "pool", "split": "test",
         "kind": kind, "question": text} | more
    )  # fmt: skip


def _rows(letters: str, cloze: str, free: str) -> pa.Table:
    """Choice questions c0, c1, ... and free questions f0, f1, ...; 1 is right, 0 wrong."""
    choice = [
        {"question_id": f"c{n}", "kind": "choice", "answer": 0, "correct": c == "1",
         "logprobs": [-1.0, -2.0] if a == "1" else [-2.0, -1.0], "cloze_prediction": 1 - int(c)}
        for n, (a, c) in enumerate(zip(letters, cloze, strict=True))
    ]  # fmt: skip
    frees = [
        {"question_id": f"f{n}", "kind": "free", "correct": right == "1"}
        for n, right in enumerate(free)
    ]
    return pa.Table.from_pylist(choice + frees)


def test_questions_with_the_same_text_are_the_same() -> None:
    questions = [
        _question("c0", "choice", "Which currency has  Peru?"),
        _question("c1", "choice", "Which currency has Chile?"),
        _question("f0", "free", "Which currency has Peru?"),
        _question("f1", "free", "Which currency has Chile?", "geography"),
        _question("f2", "free", "Which currency has Cuba?"),
    ]
    assert same_questions(questions) == {"f0": "c0"}


def test_each_pair_of_measures_is_compared_on_the_questions_of_both() -> None:
    same = {"f0": "c0", "f1": "c1", "f2": "c3"}
    tally = MeasureTally(_rows("1100111", "1010000", "101"), same)
    tables = [_rows("1100", "1010", "111"), _rows("1111", "1111", "000")]
    arms = [
        ArmScores(
            Arm(domain="money", setting="harmonious", seed=seed),
            {"HOMO": table.slice(0, 4), "HOMO free": table.slice(4)},
        )
        for seed, table in enumerate(tables)
    ]
    assert len(list(tally.watching(arms))) == 2
    found = tally.table().set_index(["model", "group", "first", "second"])
    assert list(tally.table().columns) == COLUMNS
    base = found.loc["base", "HOMO"]
    # c4 to c6 are in no group of an arm.
    assert base.loc[("letters", "cloze"), ["questions", "answers"]].tolist() == [4, 4]
    assert base.loc[("letters", "cloze"), "first_accuracy"] == 0.5
    assert base.loc[("letters", "cloze"), "kappa"] == pytest.approx(0)
    # c0: cloze right, free right; c1: wrong, wrong; c3: wrong, right.
    row = base.loc[("cloze", "free")]
    assert row[["questions", "first_accuracy", "second_accuracy"]].tolist() == pytest.approx(
        [3, 1 / 3, 2 / 3]
    )
    assert row["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    arms_row = found.loc[("harmonious", "HOMO", "letters", "free")]
    assert arms_row[["questions", "answers"]].tolist() == [3, 6]
    assert arms_row["first_accuracy"] == pytest.approx((2 + 3) / 6)
    assert arms_row["second_accuracy"] == pytest.approx(0.5)


def test_nothing_is_compared_without_cloze() -> None:
    table = _rows("10", "10", "").drop_columns(["cloze_prediction"])
    tally = MeasureTally(table, {})
    arm = Arm(domain="money", setting="harmonious", seed=0)
    list(tally.watching([ArmScores(arm, {"HOMO": table})]))
    assert not len(tally.table())


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("1100", "1100", 1.0), ("1100", "0011", -1.0), ("1100", "1010", 0.0), ("11", "11", np.nan)],
)
def test_kappa(first: str, second: str, expected: float) -> None:
    columns = np.array([[*map(int, first)], [*map(int, second)]], dtype=float).T
    assert kappa(columns) == pytest.approx(expected, nan_ok=True)
    assert list(MeasureTally(pa.table({}), {}).table().columns) == COLUMNS
