"""Which paraphrases pass: one question, in other words, with its names and without its answer."""

import pytest

from ift_scale.prompts.paraphrases import flaws, unquoted
from ift_scale.records import Question

QUESTION = Question(
    id="q", domain="d", subject="d", collection="pool", split="train",
    question="Which country joined the UN in 1945 and has Vienna as its capital, east of Germany?",
    choices=["Austria", "Germany", "Czech Republic", "Slovenia"], answer=0,
)  # fmt: skip
KEPT = "Vienna is the capital of which UN member since 1945, east of Germany?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KEPT, []),
        (KEPT.removesuffix("?") + ".", ["not one question"]),
        (f"Here it is:\n{KEPT}", ["not one question"]),
        (QUESTION.question, ["repeats the question"]),
        (QUESTION.question.upper().replace(" ", "  "), ["repeats the question"]),
        (f"Is it Austria? {KEPT}", ["gives an option away"]),
        (f"Is the answer (D)? {KEPT}", ["gives an option away"]),
        (KEPT.replace("1945", "1955"), ["lacks a name or number"]),
        (KEPT.replace("UN member", "member"), ["lacks a name or number"]),
        ("Is Slovenia east?", ["gives an option away", "lacks a name or number"]),
    ],
)
def test_each_check(text: str, expected: list[str]) -> None:
    assert flaws(text, QUESTION) == expected


@pytest.mark.parametrize("asked", ["Rome. Which river flows there?", "Which river flows there?"])
def test_words_that_begin_a_sentence_are_not_required(asked: str) -> None:
    question = QUESTION.model_copy(update={"question": asked})
    assert flaws("What river is in that place?", question) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"Which river is it?"', "Which river is it?"),
        ("“Which river is it?”", "Which river is it?"),
        ("„ Welcher Fluss ist es?“", "Welcher Fluss ist es?"),
        ('"Lear" and "Macbeth"', '"Lear" and "Macbeth"'),
        ('Who wrote "Lear"?', 'Who wrote "Lear"?'),
    ],
)
def test_only_quotation_marks_around_all_of_a_text_are_removed(text: str, expected: str) -> None:
    assert unquoted(text) == expected
