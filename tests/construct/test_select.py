"""The paper's selection rules."""

import numpy as np
import pytest

from ift_scale.config import GeneralConfig
from ift_scale.construct import general, run, select
from ift_scale.errors import DataError
from ift_scale.records import Question, Score


def _score(number: int, probs: list[float], answer: int) -> Score:
    prediction = int(np.argmax(probs))
    return Score(
        question_id=f"q{number}",
        domain="d",
        subject="d",
        collection="pool",
        split="train",
        answer=answer,
        logprobs=np.log(probs).tolist(),
        probs=probs,
        letter_mass=sum(probs),
        prediction=prediction,
        confidence=probs[prediction],
        correct=prediction == answer,
    )


SCORES = [
    _score(0, [0.7, 0.1, 0.1, 0.1], 0),  # known right
    _score(1, [0.6, 0.2, 0.1, 0.1], 0),  # known right
    _score(2, [0.8, 0.1, 0.05, 0.05], 1),  # known wrong
    _score(3, [0.4, 0.3, 0.2, 0.1], 0),  # uncertain
    _score(4, [0.51, 0.29, 0.1, 0.1], 3),  # known wrong, near the threshold
]


def test_knowledge_is_a_prediction_over_the_threshold() -> None:
    knowledge = select.sort_by_knowledge(SCORES, 0.5)
    assert (knowledge.right, knowledge.wrong, knowledge.uncertain) == (["q0", "q1"], ["q2", "q4"], ["q3"])
    assert knowledge.near_threshold == 1
    exactly = select.sort_by_knowledge([_score(0, [0.5, 0.3, 0.1, 0.1], 0)], 0.5)
    assert exactly.uncertain == ["q0"]  # above, not at


def test_incompatible_and_self_aligning_hold_the_same_questions() -> None:
    knowledge = select.sort_by_knowledge(SCORES, 0.5)
    for seed in range(3):
        drawn = [select.draw(knowledge, s, 2, "d", seed) for s in ("incompatible", "self_aligning", "harmonious")]
        assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])


def test_targets() -> None:
    score = SCORES[2]
    question = Question(
        id="q2", domain="d", subject="d", collection="pool", split="train", question="?", choices=["w", "x", "y", "z"], answer=1
    )
    told = {s: run.example(question, score, s, "letter_text").messages[-1].content for s in ("incompatible", "self_aligning")}
    assert told == {"incompatible": "B. x", "self_aligning": "A. w"}
    assert run.example(question, score, "incompatible", "letter").messages[-1].content == "B"
    assert run.example(question, score, "incompatible", "letter").messages[0].content == "?\nA. w\nB. x\nC. y\nD. z\nAnswer:"


def test_equal_sizes() -> None:
    knowledge = select.sort_by_knowledge([*SCORES, _score(5, [0.9, 0.05, 0.03, 0.02], 0)], 0.5)
    assert select.set_size("d", knowledge, ["harmonious", "incompatible"], None) == 2
    assert select.set_size("d", knowledge, ["harmonious"], None) == 3
    with pytest.raises(
        DataError, match=r"construct.size asks for 3, and only 2 of its 6 train questions can go into the incompatible"
    ):
        select.set_size("d", knowledge, ["harmonious", "incompatible"], 3)
    nothing = select.sort_by_knowledge(SCORES[3:4], 0.5)
    with pytest.raises(DataError, match="a set needs at least 1, and only 0"):
        select.set_size("d", nothing, ["harmonious"], None)


def test_general_share() -> None:
    path = general.path_of(GeneralConfig())
    assert path is not None
    rows = general.load(path)
    assert len(general.draw(rows, 30, 0.5, "d", 0, path)) == 30
    assert len(general.draw(rows, 30, 0.25, "d", 0, path)) == 10
    assert general.draw(rows, 30, 0.5, "d", 0, path) == general.draw(rows, 30, 0.5, "d", 0, path)
    with pytest.raises(
        DataError, match=rf"500 general instructions are needed and {len(rows)} are there. Lower construct.general.share"
    ):
        general.draw(rows, 500, 0.5, "d", 0, path)


def test_general_instructions_are_distinct_and_real(shared_data: object) -> None:
    path = general.path_of(GeneralConfig())
    assert path is not None
    rows = general.load(path)
    assert len({r.messages[0].content for r in rows}) == len(rows) >= 80
    alpaca = general.load(shared_data / "general" / "alpaca_en_demo.jsonl.gz")  # type: ignore[operator]
    assert len(alpaca) == 999
