"""The questions that probes are fitted on and applied to."""

import json
from pathlib import Path

import pytest

from ift_scale.config import HiddenConfig
from ift_scale.errors import DataError
from ift_scale.hidden.selection import ProbedQuestions, select
from ift_scale.records import Arm
from ift_scale.scoring.question_file import QuestionFile

ARMS = [Arm(domain=domain, setting="harmonious", seed=0) for domain in ("rivers", "money")]


@pytest.fixture
def questions(tmp_path: Path) -> QuestionFile:
    """Per domain 100 train and 12 test questions of a pool, and 30 of a benchmark."""
    rows = [
        {
            "id": f"{domain}-{collection}-{split}-{n}",
            "domain": domain,
            "subject": domain,
            "collection": collection,
            "split": split,
            "kind": "choice",
            "question": f"Which {n}?",
            "choices": ["a", "b", "c", "d"],
            "answer": n % 4,
        }
        for domain in ("rivers", "money")
        for collection, split, count in (
            ("pool", "train", 100),
            ("pool", "test", 12),
            ("benchmark", "test", 30),
        )
        for n in range(count)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QuestionFile(path)


def _set(path: Path, ids: list[str]) -> Path:
    rows = [{"messages": [], "meta": {"question_id": id}} for id in [*ids, None]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _ids(questions: QuestionFile, found: ProbedQuestions) -> tuple[list[str], list[str]]:
    return (
        [question.id for question in questions.read(found.fit_rows)],
        [question.id for question in questions.read(found.test_rows)],
    )


def test_questions_of_a_set_are_left_out_and_the_domains_own_come_first(
    questions: QuestionFile, tmp_path: Path
) -> None:
    used = [f"rivers-pool-train-{n}" for n in range(40)]
    sets = {"rivers": [_set(tmp_path / "a.jsonl", used)], "money": []}
    found = select(questions, ARMS, sets, HiddenConfig(max_fit_questions=90))
    fit, test = _ids(questions, found["rivers"])
    assert len(fit) == 90 and not set(fit) & set(used)
    assert sum(id.startswith("rivers") for id in fit) == 60  # all that are left
    # The order is random: the held-out part, the last one, is not of other domains only.
    assert 0 < sum(id.startswith("rivers") for id in fit[-22:]) < 22
    assert test == [f"rivers-pool-test-{n}" for n in range(12)]
    fit, _ = _ids(questions, found["money"])
    assert all(id.startswith("money-pool-train") for id in fit)


def test_too_few_train_questions_are_refused_with_numbers(
    questions: QuestionFile, tmp_path: Path
) -> None:
    used = [f"{d}-pool-train-{n}" for d in ("rivers", "money") for n in range(65)]
    sets = {"rivers": [_set(tmp_path / "a.jsonl", used)], "money": []}
    message = r"rivers: 70 train questions .* at least 80 .*20 per option.* 200, of which 130 are"
    with pytest.raises(DataError, match=message):
        select(questions, ARMS, sets, HiddenConfig())


def test_too_few_test_questions_are_refused_with_numbers(
    questions: QuestionFile, tmp_path: Path
) -> None:
    lines = questions.path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"money-pool-test-' not in line]
    (tmp_path / "fewer.jsonl").write_text("".join(kept))
    fewer = QuestionFile(tmp_path / "fewer.jsonl")
    with pytest.raises(DataError, match=r"money: 0 test questions .* at least 10 are needed"):
        select(fewer, ARMS, {"rivers": [], "money": []}, HiddenConfig())
