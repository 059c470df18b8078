"""The scoring core with an engine that is not a model: order, chunks, resumption, lengths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ift_scale.errors import DataError
from ift_scale.inference.engine import ScoreRequest
from ift_scale.inference.scoring import drop_shards, score_questions
from ift_scale.progress import Bar
from ift_scale.records import Question, Score


class Echo:
    """Prefers the option whose number the prompt ends with; counts what it was asked."""

    context_length = 50

    def __init__(self, fail_after: int = 1 << 30):
        self.asked: list[int] = []
        self.fail_after = fail_after

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        if len(self.asked) + len(requests) > self.fail_after:
            raise RuntimeError("killed")
        self.asked += [request.prompt[-1] for request in requests]
        return [np.log(np.where(np.arange(4) == request.prompt[-1] % 4, 0.7, 0.05)) for request in requests]


def _questions(count: int) -> list[Question]:
    return [
        Question(
            id=f"q{i}",
            domain="ab"[i % 2],
            subject="s",
            collection="pool",
            split="test",
            question=f"{i}?",
            choices=list("wxyz"),
            answer=1,
        )
        for i in range(count)
    ]


def _render(questions: Sequence[Question]) -> list[ScoreRequest]:
    return [ScoreRequest([1, int(q.id[1:])], [5, 6, 7, 8]) for q in questions]


def _score(questions: list[Question], engine: Echo, folder: Path, key: str = "k", chunk: int = 3) -> list[Score]:
    scores, _ = score_questions(questions, _render, lambda: engine, folder, key, chunk, Bar("t", len(questions), None))  # type: ignore[arg-type, return-value]
    return scores


def test_scores_come_in_the_order_of_the_questions_and_are_asked_by_topic(tmp_path: Path) -> None:
    engine = Echo()
    scores = _score(_questions(10), engine, tmp_path)
    assert [s.question_id for s in scores] == [f"q{i}" for i in range(10)]
    assert [s.prediction for s in scores] == [i % 4 for i in range(10)]
    assert engine.asked == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]


def test_a_killed_run_goes_on_behind_its_shards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _score(_questions(10), Echo(fail_after=7), tmp_path)
    second = Echo()
    scores = _score(_questions(10), second, tmp_path)
    assert len(second.asked) == 4
    assert scores == _score(_questions(10), Echo(), tmp_path / "fresh")


def test_a_changed_chunk_size_does_not_mix_up_shards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _score(_questions(10), Echo(fail_after=7), tmp_path)
    assert _score(_questions(10), Echo(), tmp_path, chunk=4) == _score(_questions(10), Echo(), tmp_path / "fresh")


def test_shards_of_another_key_are_not_used(tmp_path: Path) -> None:
    _score(_questions(4), Echo(), tmp_path, key="one")
    engine = Echo()
    _score(_questions(4), engine, tmp_path, key="two")
    assert len(engine.asked) == 4
    drop_shards(tmp_path)
    assert not list(tmp_path.iterdir())


def test_prompt_over_the_context_is_told(tmp_path: Path) -> None:
    engine = Echo()
    engine.context_length = 1
    with pytest.raises(DataError, match=r"question q0: its prompt has 2 tokens, more than the model's context takes \(1\)"):
        _score(_questions(2), engine, tmp_path)


def test_score_record() -> None:
    question = _questions(2)[1]
    score = Score.of(question, np.log([0.1, 0.6, 0.1, 0.1]))
    assert score.letter_mass == pytest.approx(0.9)
    assert score.confidence == pytest.approx(0.6 / 0.9)
    assert score.correct and score.prediction == 1
    assert sum(score.probs) == pytest.approx(1)
