"""What is decodable and what is expressed, on planted values."""

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.answers import Answers
from ift_scale.analyse.hidden import (
    ProbedModel,
    compared_with_base,
    decision_layer,
    hidden_tables,
    values_of,
)
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.records import Arm

NUM, LAYERS = 40, 3


def _values(decoded: str, expressed: str) -> dict[str, np.ndarray]:
    decoded_Q, expressed_Q = (np.array([*map(float, text)]) for text in (decoded, expressed))
    lens = np.zeros((len(decoded), 1), dtype=int)
    return values_of(decoded_Q[:, None], 0 * lens, lens, 0, np.zeros(len(decoded)), expressed_Q)


def test_hidden_and_lost_by_hand() -> None:
    before, after = _values("11101", "11100"), _values("10110", "10010")
    assert after["hidden"].tolist() == [0, 0, 1, 0, 0]  # decodable, not expressed
    assert after["unread"].tolist() == [0, 0, 0, 0, 0]
    assert before["hidden"].tolist() == [0, 0, 0, 0, 1]
    made = compared_with_base(after, before)
    assert made["lost"].tolist() == [0, 1, 1, 0, 0]
    assert made["lost_decodable"].tolist()[1:3] == [0, 1]  # gone, hidden
    assert np.isnan(made["lost_decodable"][[0, 3, 4]]).all()
    assert made["lost_before"].tolist()[1:3] == [1, 1]
    assert np.flatnonzero(np.isfinite(made["unknown_decodable"])).tolist() == [4]
    assert made["change"].tolist() == [0, -1, 0, 1, -1]


def test_a_question_that_the_base_model_was_not_asked_is_neither_kept_nor_lost() -> None:
    before, after = _values("11", "11"), _values("10", "00")
    before["expressed"][1] = np.nan
    made = compared_with_base(after, before)
    assert made["lost"][0] == 1 and np.isnan(made["lost"][1])
    assert np.isnan(made["lost_decodable"][1]) and np.isnan(made["unknown_decodable"][1])


def test_the_layer_of_the_decision() -> None:
    lens = np.array([[0, 1, 2, 2], [2, 1, 2, 1], [3, 3, 3, 3], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(decision_layer(lens), [2, 3, 0, np.nan])


def _model(domain: str, ids: list[str], decoded_QL: np.ndarray, losses: list[float]) -> ProbedModel:
    rows = [
        {"domain": domain, "question_id": id, "decoded": d, "control": [False] * LAYERS,
         "lens": [1, 1, 0]}
        for id, d in zip(ids, decoded_QL.tolist(), strict=True)
    ]  # fmt: skip
    layers = [
        {"domain": domain, "layer": n, "held_out_loss": loss} for n, loss in enumerate(losses)
    ]
    return ProbedModel(pd.DataFrame(rows[::-1]), pd.DataFrame(layers))  # in another order


def _tables(lost_are_decodable: bool) -> dict[str, pd.DataFrame]:
    """The base model answers the first 30 of 40; the arm loses 20 of these, or hides them."""
    ids = [f"q{n}" for n in range(NUM)]
    known = np.arange(NUM) < 30
    kept = np.arange(NUM) < 10
    columns = pd.DataFrame({"answer": 0.0, "correct": known.astype(float)}, index=ids)
    base = Answers(columns, np.full((NUM, 4), 0.25))
    arm = Arm(domain="rivers", setting="incompatible", seed=0)
    accuracy = {"accuracy": kept[None].astype(float)}
    panel = Panel("rivers", "HOMO", pd.Index(ids), [arm], accuracy, base)
    in_last = np.stack([np.zeros(NUM, bool), np.zeros(NUM, bool), known], 1)
    after = known if lost_are_decodable else kept
    in_middle = np.stack([np.zeros(NUM, bool), after, np.zeros(NUM, bool)], 1)
    models = {
        "base": _model("rivers", ids, in_last, [1.4, 1.3, 0.2]),
        arm.name: _model("rivers", ids, in_middle, [1.4, 0.3, 0.9]),
    }
    other = Panel("rivers", "OOD", pd.Index(ids), [arm], accuracy, base)
    return hidden_tables(Panels([panel, other]), models, 0.95)


@pytest.mark.parametrize("decodable", [True, False])
def test_lost_answers_are_hidden_or_gone(decodable: bool) -> None:
    table = _tables(decodable)["hidden"].set_index("setting")
    base, arm = table.loc["base"], table.loc["incompatible"]
    assert base.expressed == base.decodable == 0.75 and base.hidden == 0
    assert np.isnan(base.lost_decodable) and np.isnan(base.change)
    assert arm.lost_questions == 20 and arm.lost == 0.5 and arm.lost_before == 1
    assert arm.lost_decodable == (1.0 if decodable else 0.0)
    assert arm.unknown_decodable == 0
    assert arm.hidden == (0.5 if decodable else 0.0)
    assert (arm.best_layer, base.best_layer) == (1, 2)  # by the fit questions' loss alone
    assert arm.hidden_low <= arm.hidden <= arm.hidden_high and arm.hidden_high < 0.75
    assert arm.selectivity == arm.decodable


def test_layers_have_their_own_rows() -> None:
    table = _tables(True)["hidden_layers"]
    base = table[table.setting == "base"]
    assert base.layer.tolist() == [0, 1, 2]
    assert base.decodable.tolist() == [0, 0, 0.75]
    assert base.lens.tolist() == [0, 0, 1]
