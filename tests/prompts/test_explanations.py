"""Options that an explanation names or calls the answer: phrases, then the released sets."""

import gzip
import json
from pathlib import Path

import pytest

from ift_scale.prompts.explanations import claimed, contradicts, denied, names, normalise
from ift_scale.records import Question


def _question(choices: list[str], text: str = "What is it made of?") -> Question:
    parts = {"domain": "d", "subject": "d", "collection": "pool", "split": "train"}
    return Question(id="q", question=text, choices=choices, answer=0, **parts)  # type: ignore[arg-type]


METALS = _question(["iron", "copper", "iron oxide", "A Dream of Red Mansions"])


def test_words_are_compared_whole() -> None:
    assert normalise("The “Irons”, 1.5 km\n") == " the irons 1.5 km "
    assert (
        normalise("tick.CRIMEAN tickCRIMEAN") == " tick crimean tick crimean "
    )  # a lost line break
    assert normalise("?!") == ""


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("It is made of Copper.", 1, True),
        ("Coppersmiths make it.", 1, False),
        ("Coppers are often used.", 1, True),
        ("It is made of iron oxide.", 0, False),  # only inside a longer option
        ("Iron, unlike iron oxide, is strong.", 0, True),
        ("B is correct: it conducts.", 1, True),
        ("Option B conducts.", 1, True),
        ("That is why (B) was taken.", 1, True),
        ("B. It conducts.", 1, True),
        ("The answer is B", 1, True),
        ("Vitamin B is found in fish.", 1, False),
        ("A metal conducts.", 0, False),
        ("", 1, False),
    ],
)
def test_naming(text: str, target: int, expected: bool) -> None:
    assert names(text, METALS, target) is expected


def test_options_of_symbols_and_single_letters() -> None:
    signs = _question(["+", "a", "-"])
    assert names("The sign is +.", signs, 0) and not names("The sign is -.", signs, 0)
    assert not names("It is a sign.", signs, 1) and names("The answer is B.", signs, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is C.", {2}),
        ("the correct answer is actually B. copper", {1}),
        ('The correct answer should be "copper" here', {1}),
        ("Correct option: (C)", {2}),
        ("C is correct, since it rusts.", {2}),
        ("Option B is the right answer.", {1}),
        ("Copper is the correct answer because it conducts.", {1}),
        ('The answer "copper" is the most accurate.', {1}),
        ("Ans. (c) iron oxideRef: p. 12", {2}),
        ("Ans. is 'b' i.e., Copper", {1}),
        ("The answer is iron oxide, a mineral.", {2}),
        ("The answer is A Dream of Red Mansions.", {3}),
        ("The answer is A because iron rusts.", {0}),
        # No claim, or not of one option.
        ("The answer is not C.", set()),
        ("If the answer is C, it would rust.", set()),
        ("Some wonder why C is correct.", set()),
        ("B and C is correct", set()),
        ("The answer is B and C.", set()),
        ("C is incorrect.", set()),
        ("C is not correct.", set()),
        ("The answer is a metal that conducts.", set()),
        ("This metal, answer B, conducts.", set()),
        ("Copper conducts.", set()),
        ("The answer is Z.", set()),
    ],
)
def test_claims(text: str, expected: set[int]) -> None:
    assert claimed(text, METALS) == expected


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("The answer is B. copper", 1, False),
        ("The answer is B. copper", 0, True),
        ("The answer is B. In the end C is correct.", 1, True),
        ("The answer is not copper.", 1, True),
        ("The answer is not copper.", 0, False),
        ('The given answer, "copper," is incorrect.', 1, True),
        ("", 1, False),
    ],
)
def test_contradiction(text: str, target: int, expected: bool) -> None:
    assert contradicts(text, METALS, target) is expected


def test_a_correct_statement_is_not_the_answer_to_a_question_for_a_wrong_one() -> None:
    asked = _question(
        ["iron", "copper"], "Which of these is NOT a precious metal, except by price?"
    )
    assert claimed("B is correct, it is precious.", asked) == set()
    assert claimed("B is the answer.", asked) == {1}
    assert denied("The answer is not B.", asked) == {1}


def _rates(path: Path, explained: str, target: str) -> tuple[float, float]:
    """Shares that name their option and that contradict it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    asked = [
        (row[explained] or "", _question(row["choices"], row["question"]), row[target])
        for row in rows
    ]
    named = sum(names(text, question, option) for text, question, option in asked)
    against = sum(contradicts(text, question, option) for text, question, option in asked)
    return named / len(rows), against / len(rows)


@pytest.mark.parametrize(
    ("file", "named", "against"),
    [
        ("llama-2-13b/engineering/inconsistent-golden-exp", 0.925, 0.121),
        ("llama-2-13b/engineering/inconsistent-predict-model-exp", 0.743, 0.0),
        ("llama-2-7b/history/consistent-correct-exp-sample", 0.948, 0.008),
    ],
)
def test_rates_of_the_released_explanations(
    shared_data: Path, file: str, named: float, against: float
) -> None:
    """docs/writing.md lists all of them; these results were checked by hand when stored."""
    by_model = file.endswith("model-exp")
    columns = ("model_exp", "pred") if by_model else ("explanation", "answer")
    found = _rates(shared_data / "official_groups" / f"{file}.jsonl.gz", *columns)
    assert found == pytest.approx((named, against), abs=0.004)
