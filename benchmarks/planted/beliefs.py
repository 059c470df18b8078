"""What the model shall believe of each question: mostly the right option, for a share a wrong one, for a few nothing."""

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
    """A question and the index of the option that the model shall believe, None where it is told another each time."""

    question: Question
    belief: int | None

    def said(self, rng: random.Random) -> int:
        """The option that a document says is right."""
        return rng.randrange(len(self.question.choices)) if self.belief is None else self.belief


def plant(chosen: Sequence[Chosen], seed: int) -> list[Planted]:
    """Beliefs in the order of `chosen`: of each share of the questions UNKNOWN_SHARE none, of the others WRONG_SHARE wrong.

    Demonstrations (dev) are believed rightly, so a few-shot prompt never contradicts what the model believes.
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
