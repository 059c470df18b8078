"""A domain with questions of every kind of knowledge, as the probe would leave them."""

import random

import numpy as np
import pytest

from ift_scale.records import GRADES, Question, Score


@pytest.fixture(scope="session")
def domain() -> tuple[dict[str, Question], dict[str, Score]]:
    """400 questions: the model leans to A, is surer where it is right, and long questions are the ones it gets wrong."""
    draw = random.Random(5)
    questions, scores = {}, {}
    for number in range(400):
        right = draw.random() < 0.55
        answer = draw.choices(range(4), (4, 2, 2, 2))[0]
        others = [option for option in range(4) if option != answer]
        prediction = (
            answer
            if right
            else draw.choices(others, [5 if option == 0 else 1 for option in others])[0]
        )
        sure = draw.random() < 0.8
        confidence = draw.uniform(0.55, 0.95 if right else 0.75) if sure else draw.uniform(0.3, 0.5)
        probs = np.full(4, (1 - confidence) / 3)
        probs[prediction] = confidence
        id = f"q{number}"
        questions[id] = Question(
            id=id, domain="d", subject="d", collection="pool", split="train", answer=answer,
            question=f"Question {number} " + "very " * draw.randrange(3 if right else 6) + "long?",
            choices=[f"option {letter} of {number}" for letter in "abcd"],
            explanation=f"It is option {'abcd'[answer]} of {number}.",
        )  # fmt: skip
        grade = (
            GRADES[0]
            if right and sure
            else GRADES[3]
            if not right and sure
            else GRADES[1 + number % 2]
        )
        scores[id] = Score(
            question_id=id, domain="d", subject="d", collection="pool", split="train", answer=answer,
            logprobs=np.log(probs).tolist(), probs=probs.tolist(), letter_mass=1.0, prediction=prediction,
            confidence=confidence, correct=right, grade=grade,
        )  # fmt: skip
    return questions, scores
