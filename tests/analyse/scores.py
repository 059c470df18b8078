"""Scores whose analysis is known, for the tests of the tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.answers import ArmScores, answers_of, table_of
from ift_scale.analyse.panel import Panels, panels_of
from ift_scale.records import Arm, Score

WHO: dict[str, Any] = {"domain": "d", "subject": "d", "collection": "pool", "split": "test"}


def choice(id: str, is_right: bool, num_choices: int = 4, sure: float = 0.6, **more: Any) -> Score:
    """A question with answer 1; the model answers it or option 0 with probability `sure`."""
    probs = np.full(num_choices, (1 - sure) / (num_choices - 1))
    probs[1 if is_right else 0] = sure
    known = {"logprobs": np.log(probs).tolist(), "probs": probs.tolist(), "letter_mass": 1.0}
    reported = {
        "answer": 1,
        "correct": is_right,
        "prediction": int(probs.argmax()),
        "confidence": float(probs.max()),
    }
    return Score(question_id=id, **WHO, **known, **reported, **more)


def free(id: str, is_right: bool, **more: Any) -> Score:
    nothing = {
        "answer": None,
        "logprobs": None,
        "probs": None,
        "letter_mass": None,
        "prediction": None,
    }
    return Score(
        kind="free",
        question_id=id,
        **WHO,
        **nothing,
        confidence=0.9,
        correct=is_right,
        response="x",
        **more,
    )


def choices(right: Sequence[bool], prefix: str = "q", **more: Any) -> list[Score]:
    return [choice(f"{prefix}{i}", is_right, **more) for i, is_right in enumerate(right)]


def arm(
    setting: str, seed: int, scores: list[Score], domain: str = "d", group: str = "HOMO"
) -> ArmScores:
    return ArmScores(Arm(domain=domain, setting=setting, seed=seed), {group: table_of(scores)})


def panels(arms: Sequence[ArmScores], base: Sequence[Score]) -> Panels:
    return panels_of(iter(arms), answers_of(table_of(base)))


BETTER, WORSE = [True] * 40, [i % 2 == 0 for i in range(40)]
BASE = choices(BETTER)
"""The base model is right on all forty questions."""


def two_settings() -> Panels:
    """Two seeds each: harmonious keeps everything, incompatible half."""
    arms = [arm("harmonious", s, choices(BETTER)) for s in (0, 1)] + [
        arm("incompatible", s, choices(WORSE)) for s in (0, 1)
    ]
    return panels(arms, BASE)


def rows_of(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    for name, value in where.items():
        table = table[table[name] == value]
    return table
