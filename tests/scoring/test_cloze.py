"""Scores of options by their texts: formulas, the choice of the prediction, and damaged weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ift_scale.config import ProbeConfig, ReliabilityConfig
from ift_scale.config.engines import reliability_problems
from ift_scale.engines.protocol import ScoreRequest, TextRequest
from ift_scale.errors import DataError
from ift_scale.prompts.views import plain
from ift_scale.records import Question
from ift_scale.scoring.blocks import blocks
from ift_scale.scoring.cloze import Cloze, option_scores
from ift_scale.scoring.letters import LetterAsker
from ift_scale.scoring.scores import ChoiceScores, arm_schema

TEXTS = {"Guinea": -2.5, "Guinea-Bissau": -2.0, "Fiji": -6.0, "Chad": -5.0}
EMPTY = {"Guinea": -3.0, "Guinea-Bissau": -9.0, "Fiji": -7.0, "Chad": -4.0}


def _question(number: int, choices: Sequence[str] = tuple(TEXTS)) -> Question:
    return Question(
        id=f"q{number}", domain="geography", subject="capitals", collection="pool", split="test",
        kind="choice", question=f"Bissau {number}?", choices=list(choices), answer=1,
    )  # fmt: skip


class Written:
    """Writes letters as ids 0 to 3, and a text as its question and its position in TEXTS."""

    def requests(self, *arguments: Any) -> list[Any]:
        questions, second = arguments
        if isinstance(questions, Question):
            asked = [int(questions.question != "")]
            return [TextRequest([], asked, [list(TEXTS).index(text)]) for text in second]
        return [ScoreRequest([], [1], list(range(len(q.choices)))) for q in questions]


class Fixed:
    """An engine with the values of TEXTS and EMPTY; by letters it always answers A."""

    def __init__(self, **changes: float):
        self.changes, self.asked = changes, 0

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        return np.concatenate([-1.0 - np.arange(len(r.options)) for r in requests])

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        self.asked += len(requests)
        values = [EMPTY, TEXTS | self.changes]
        return np.array([list(values[r.suffix[0]].values())[r.continuation[0]] for r in requests])


def _table(score: Any, engine: Fixed, questions: list[Question]) -> pa.Table:
    asker = LetterAsker(Written(), plain, Cloze(Written(), score))
    return asker.ask(engine, asker.write(questions))  # type: ignore[arg-type]


def test_each_score_is_its_formula() -> None:
    (block,) = blocks(_table("pmi", Fixed(), [_question(0)]))
    assert block.cloze is not None and block.bytes is not None
    measured = (block.cloze, block.bytes, block.empty)
    found = {name: option_scores(name, *measured)[0] for name in ("sum", "byte", "pmi")}
    assert found["sum"].tolist() == [-2.5, -2.0, -6.0, -5.0]
    mean = (6 + 13 + 4 + 4) / 4
    assert found["byte"].tolist() == pytest.approx(
        [-2.5 * mean / 6, -2.0 * mean / 13, -6.0 * mean / 4, -5.0 * mean / 4]
    )
    assert found["pmi"].tolist() == [0.5, 7.0, 1.0, -1.0]


def test_options_that_recur_are_asked_once_after_the_empty_question() -> None:
    engine = Fixed()
    questions = [_question(0), _question(1), _question(2, ("Chad", "Fiji"))]
    table = _table("pmi", engine, questions)
    assert engine.asked == 4 + 4 + 2 + 4
    assert table["empty"].to_pylist()[2] == [EMPTY["Chad"], EMPTY["Fiji"]]
    engine = Fixed()
    assert "empty" not in _table("sum", engine, questions).column_names and engine.asked == 10


@pytest.mark.parametrize("score", ["sum", "byte", "pmi"])
@pytest.mark.parametrize("decide_by", ["plain", "cloze"])
def test_the_measure_that_decides(score: Any, decide_by: Any) -> None:
    questions = [_question(0), _question(1, ("Fiji", "Chad")), _question(2)]
    scores = ChoiceScores(ReliabilityConfig(cloze=score, decide_by=decide_by))
    table = _table(score, Fixed(), questions)
    rows = scores.rows(table).to_pylist()
    by_text = {"sum": 1, "byte": 1, "pmi": 0}[score]
    assert [row["cloze_prediction"] for row in rows] == [1, by_text, 1]
    assert rows[0]["cloze_logprobs"] == list(TEXTS.values())
    expected = [1, by_text, 1] if decide_by == "cloze" else [0, 0, 0]
    assert [row["prediction"] for row in rows] == expected
    assert [row["correct"] for row in rows] == [prediction == 1 for prediction in expected]
    for row in rows:
        assert sum(row["probs"]) == pytest.approx(1)
        assert row["confidence"] == max(row["probs"]) == row["probs"][row["prediction"]]
    if decide_by == "cloze" and score == "sum":
        weights = np.exp(list(TEXTS.values()))
        assert rows[0]["probs"] == pytest.approx(list(weights / weights.sum()))
    summary = scores.summary.cloze.as_json()
    assert set(summary["scores"]) == {"sum", "byte", *(["pmi"] if score == "pmi" else [])}
    gold = [row["probs"][1] for row in rows]
    if decide_by == "cloze":
        assert summary["nll"] == pytest.approx(-np.log(gold).mean())
        confidence, right = ([row[n] for row in rows] for n in ("confidence", "correct"))
        bins: dict[int, float] = {}
        for c, r in zip(confidence, right, strict=True):
            bins[min(int(c * 10), 9)] = bins.get(min(int(c * 10), 9), 0) + c - r
        assert summary["ece"] == pytest.approx(sum(map(abs, bins.values())) / 3)
    assert summary["accuracy"] == pytest.approx((2 + (by_text == 1)) / 3)
    assert summary["agreement"] == pytest.approx((by_text == 0) / 3)
    schema = arm_schema(cloze=True, generated=False)
    assert scores.rows(table).select(schema.names).schema == schema


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_damaged_weights_are_an_error_of_the_question(value: float) -> None:
    with pytest.raises(DataError, match=r"question q1: .*not numbers"):
        _table("sum", Fixed(Chad=value), [_question(0, ("Fiji", "Guinea")), _question(1)])


def test_deciding_by_cloze_needs_a_score() -> None:
    probe = ProbeConfig(reliability=ReliabilityConfig(decide_by="cloze"))
    assert reliability_problems(probe) == [
        "probe.reliability.decide_by: cloze needs probe.reliability.cloze: sum, byte or pmi"
    ]
    probe = ProbeConfig(reliability=ReliabilityConfig(decide_by="cloze", cloze="pmi", grades=False))
    assert not reliability_problems(probe) and probe.of_arms.cloze == "pmi"
    assert ProbeConfig(reliability=ReliabilityConfig(cloze="sum")).of_arms == ReliabilityConfig()
