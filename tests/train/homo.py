"""A questions file and a probe of the world's medicine pool, as written by the earlier stages."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.io.files import write_jsonl
from ift_scale.questions import world
from ift_scale.records import GRADES, Question
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.scores import SCHEMA
from ift_scale.train.live.questions import LiveSource

DOMAIN = "medicine"


def source(folder: Path, count: int = 24) -> LiveSource:
    """Returns `count` held-out questions among others; every third has one option less."""
    found = [question for question in world.load() if question.kind == "choice"]
    held_out = [
        question
        for question in found
        if (question.domain, question.collection, question.split) == (DOMAIN, "pool", "test")
    ]
    kept = [_shorter(q) if i % 3 == 0 else q for i, q in enumerate(held_out[:count])]
    others = [
        question for question in found if question.domain != DOMAIN or question.split == "dev"
    ][:60]
    path = folder / "questions.jsonl"
    write_jsonl(path, others[:30] + kept + others[30:])
    probe = folder / "probe.parquet"
    pq.write_table(
        pa.Table.from_pylist([_score(question, i) for i, question in enumerate(kept)], SCHEMA),
        probe,
    )
    return LiveSource(QuestionFile(path), probe)


def _shorter(question: Question) -> Question:
    """Returns the question without one of its wrong options."""
    assert question.answer is not None
    if question.answer == len(question.choices) - 1:
        return question.model_copy(
            update={"choices": question.choices[1:], "answer": question.answer - 1}
        )
    return question.model_copy(update={"choices": question.choices[:-1]})


def _score(question: Question, number: int) -> dict[str, object]:
    probs = np.random.default_rng(number).dirichlet(np.ones(len(question.choices))).tolist()
    who = {
        name: getattr(question, name)
        for name in ("kind", "domain", "subject", "collection", "split")
    }
    return who | {"question_id": question.id, "probs": probs, "grade": GRADES[number % 3]}
