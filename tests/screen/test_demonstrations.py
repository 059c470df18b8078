"""Demonstrations from the data itself: never the example or a copy, the same for any order."""

import random

from ift_scale.records import Question
from ift_scale.screen.demonstrations import (
    GroupDemonstrations,
    Reservoir,
    half_of,
    prompt_digest,
)


def _question(number: int, text: str | None = None) -> Question:
    return Question(
        id=str(number),
        domain="d",
        subject="short",
        collection="pool",
        split="train",
        kind="free",
        question=text or f"What is {number}?",
        aliases=[f"answer {number}"],
    )


def _filled(questions: list[Question], size: int = 6) -> Reservoir:
    reservoir = Reservoir(size, 42)
    for question in questions:
        reservoir.add("short", question, prompt_digest(question))
    return reservoir


def test_no_example_is_shown_itself_or_a_copy() -> None:
    questions = [_question(n) for n in range(40)]
    copies = [_question(100 + n, f"  what IS {n} ") for n in range(40)]
    reservoir = _filled(questions + copies)
    for question in questions + copies:
        digest = prompt_digest(question)
        shown = reservoir.shown_to(("short", half_of(digest)))
        assert len(shown) == 6
        assert digest not in {prompt_digest(other) for other in shown}
        assert len({prompt_digest(other) for other in shown}) == 6


def test_the_draw_does_not_depend_on_the_order() -> None:
    questions = [_question(n) for n in range(60)]
    mixed = random.Random(0).sample(questions, len(questions))
    for half in (0, 1):
        first, second = (_filled(order).shown_to(("short", half)) for order in (questions, mixed))
        assert first == second


def test_draws_differ_and_wrap_around() -> None:
    shown = GroupDemonstrations([_question(n) for n in range(6)], 3)
    first, second, third = ([q.id for q in shown.of(_question(9), draw)] for draw in range(3))
    assert (first, second, third) == (["0", "1", "2"], ["3", "4", "5"], ["0", "1", "2"])
    few = GroupDemonstrations([_question(0)], 3)
    assert [q.id for q in few.of(_question(9), 2)] == ["0"]
    assert GroupDemonstrations([], 3).of(_question(9), 1) == []
