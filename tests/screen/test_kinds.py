"""Kinds of examples by their form: options in the forms of real sets, short answers, the rest."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from ift_scale.prompts.templates import question_text
from ift_scale.questions import world
from ift_scale.records import Message
from ift_scale.screen.kinds import Recognised, recognise


def _recognised(asked: str, answer: str, *before: Message) -> Recognised:
    return recognise(
        [*before, Message(role="user", content=asked), Message(role="assistant", content=answer)]
    )


STEM = "Which gas do plants take up?"
FORMS = {
    "our sets": f"{STEM}\nA. oxygen\nB. carbon dioxide\nC. argon\nAnswer:",
    "parenthesis": f"{STEM}\nA) oxygen\nB) carbon dioxide\nC) argon",
    "two parentheses": f"Question: {STEM}\n(A) oxygen\n(B) carbon dioxide\n(C) argon\n",
    "colon": f"{STEM}\n\nOptions:\nA: oxygen\nB: carbon dioxide\nC: argon\n\nThe answer is",
    "lower case": f"{STEM}\na) oxygen\nb) carbon dioxide\nc) argon",
    "list": f"{STEM}\n- A. oxygen\n- B. carbon dioxide\n- C. argon",
    "bold": f"{STEM}\n**A.** oxygen\n**B.** carbon dioxide\n**C.** argon",
    "inline": f"{STEM} A. oxygen B. carbon dioxide C. argon",
    "inline, parentheses": f"{STEM} (A) oxygen, (B) carbon dioxide, (C) argon",
    "instruction after": f"{STEM}\nA. oxygen\nB. carbon dioxide\nC. argon\n\nAnswer by letter.",
    "Alpaca": f"{STEM}\n\nA. oxygen\nB. carbon dioxide\nC. argon",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "answer", ["B", "B.", "(B)", "B. carbon dioxide", "carbon dioxide", "The answer is B."]
)
def test_choice_questions_in_all_forms(form: str, answer: str) -> None:
    found = _recognised(FORMS[form], answer)
    assert (found.kind, found.question) == ("choice", STEM)
    assert found.choices == ["oxygen", "carbon dioxide", "argon"] and found.answer == 1
    assert found.explanation is None


@pytest.mark.parametrize(
    "start", ["B. carbon dioxide\n", "B.\n", "The answer is B. carbon dioxide. "]
)
def test_an_explanation_is_kept_apart(start: str) -> None:
    found = _recognised(FORMS["our sets"], f"{start}Plants make sugar of it in their leaves.")
    assert found.answer == 1
    assert found.explanation == "Plants make sugar of it in their leaves."


def test_a_question_after_the_options_belongs_to_it() -> None:
    found = _recognised("Given:\nA. x is 1\nB. x is 2\nWhich one is even?", "B")
    assert found.question == "Given:\nWhich one is even?"


def test_lists_and_names_are_no_options() -> None:
    asked = "Who was vitamin A. discovered by? B. Smith wrote about it."
    assert _recognised(asked, "Elmer McCollum").kind == "short"
    assert (
        _recognised(
            "Explain:\nA. tides\nB. eclipses",
            "Both are caused by the moon and the sun, as Newton showed.",
        ).kind
        == "long"
    )


def test_options_about_a_passage_are_not_knowledge() -> None:
    found = _recognised(f"Passage: Plants take up carbon dioxide.\n{FORMS['our sets']}", "B")
    assert found.kind == "other" and "passage" in found.why


def test_every_question_of_the_world_is_recognised_whole() -> None:
    for question in world.load():
        if question.kind == "choice":
            asked, answer = question_text(question), question.answer
            assert answer is not None
            found = _recognised(asked, question.choices[answer])
            assert (found.question, found.choices, found.answer) == (
                question.question,
                question.choices,
                answer,
            )


@pytest.mark.parametrize(
    ("asked", "answer", "kind"),
    [
        ("What is the capital of France?", "Paris", "short"),
        ("Name the capital of France.", "The capital of France is Paris.", "short"),
        ("Why is the sky blue?", "Because air scatters blue light more than red light.", "long"),
        ("Translate to German: good morning", "Guten Morgen", "other"),
        ("Rewrite the sentence.\n\nHe go to the school every day at noon.", "He goes.", "other"),
        (
            "Write a poem about the sea.",
            "The sea is wide and deep and blue and never still.",
            "other",
        ),
        ("Write a Python function that adds two numbers.", "def add(a, b): return a + b", "other"),
        ("How do I print in Python?", "```python\nprint('x')\n```", "other"),
        ("What is 17 * 3?", "51", "other"),
        ("Calculate 12 + 5.", "The sum of the two numbers is 17, as you see.", "other"),
        ("When did the second war end?", "1945", "short"),
    ],
)
def test_other_kinds(asked: str, answer: str, kind: str) -> None:
    assert _recognised(asked, answer).kind == kind


def test_an_answer_made_of_the_prompts_words_is_not_knowledge() -> None:
    asked = "The meeting of the board was moved from Monday to Friday at noon. When is it?"
    found = _recognised(asked, "The meeting of the board was moved to Friday at noon.")
    assert found.kind == "other" and "in the prompt" in found.why


def test_earlier_turns_are_part_of_the_question() -> None:
    before = [Message(role="user", content="Hello"), Message(role="assistant", content="Hi")]
    found = _recognised("Who wrote Faust?", "Goethe", *before)
    assert found.question == "User: Hello\n\nAssistant: Hi\n\nUser: Who wrote Faust?"
    system = Message(role="system", content="Be brief.")
    assert (
        _recognised("Who wrote Faust?", "Goethe", system).question
        == "Be brief.\n\nWho wrote Faust?"
    )


def test_aliases_of_a_short_answer() -> None:
    assert _recognised("Who?", "JFK (John F. Kennedy)").aliases == ["JFK (John F. Kennedy)", "JFK"]


def test_real_instructions(shared_data: Path) -> None:
    """Most of Alpaca's examples that begin by asking to write or change are not knowledge."""
    counts: Counter[str] = Counter()
    with gzip.open(shared_data / "general" / "alpaca_en_demo.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            asked = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
            counts[_recognised(asked, row["output"]).kind] += 1
    assert 450 < counts["long"] < 600 and 40 < counts["short"] < 100
    assert 300 < counts["other"] < 450 and counts["choice"] < 10
