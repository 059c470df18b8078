"""The planted belief about each question: mostly the right option, some wrong, some none."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.planted.choose import Chosen
from ift_scale.records import Question

WRONG_SHARE = 0.38
UNKNOWN_SHARE = 0.05


@dataclass(frozen=True)
class Planted:
    """A question and the index of the believed option; None if each document states another."""

    question: Question
    belief: int | None

    def said(self, rng: random.Random) -> int:
        """Returns the option that a document states as right."""
        return rng.randrange(len(self.question.choices)) if self.belief is None else self.belief


def plant(chosen: Sequence[Chosen], seed: int) -> list[Planted]:
    """Returns beliefs in the order of `chosen`.

    In each share of the questions, UNKNOWN_SHARE have no belief, and WRONG_SHARE of the others a
    wrong one. Beliefs about demonstrations (dev) are right, so a few-shot prompt never contradicts
    the model.
    """
    planted: list[Planted] = []
    for share, members in groupby(chosen, key=lambda c: c.share):
        rng = random.Random(f"beliefs/{seed}/{share.topic}/{share.split}")
        questions = [c.question for c in members]
        kinds = ["right"] * len(questions) if share.split == "dev" else _kinds(len(questions), rng)
        planted += [
            Planted(question, _belief(question, kind, rng))
            for question, kind in zip(questions, kinds, strict=True)
        ]
    return planted


def _kinds(count: int, rng: random.Random) -> list[str]:
    num_unknown = round(UNKNOWN_SHARE * count)
    num_wrong = round(WRONG_SHARE * (count - num_unknown))
    kinds = (
        ["unknown"] * num_unknown
        + ["wrong"] * num_wrong
        + ["right"] * (count - num_unknown - num_wrong)
    )
    rng.shuffle(kinds)
    return kinds


def _belief(question: Question, kind: str, rng: random.Random) -> int | None:
    assert question.answer is not None
    wrong = [index for index in range(len(question.choices)) if index != question.answer]
    return {"right": question.answer, "wrong": rng.choice(wrong), "unknown": None}[kind]
