"""Prompts for writers."""

import pytest

from ift_scale.write.prompts import FENCE, FIXED, TopicDemonstrations, cut, prompt
from tests.write.made import question

SHOWN = question(0, "dev", "Machines that conduct are made of copper.")


def test_urial_begins_the_answer_with_the_option_and_shows_one_answer() -> None:
    text = prompt(question(1), "explanation", 2, "urial", SHOWN).text
    assert text.startswith("# Instruction\n") and text.count("# Query:\n```\n") == 2 == text.count(
        "# Answer:\n```\n"
    )
    shown = "A. copper\nExplanation: Machines that conduct are made of copper.\n```\n\n# Query:"
    assert shown in text and text.endswith("# Answer:\n```\nC. glass\nExplanation:")
    assert (
        "What is the machine Q1 made of?\nA. copper\nB. oak\nC. glass\nD. steel\n\n" in text
        and "\nAnswer:" not in text
    )


def test_plain_prompts_fit_the_embedded_world() -> None:
    asked = prompt(question(1), "explanation", 2, "plain", SHOWN)
    assert asked.text == (
        "What is the machine Q1 made of?\nA. copper\nB. oak\nC. glass\nD. steel\nAnswer:C."
        " glass\nExplanation:"
    ) and (asked.stop, asked.chat) == ("\n", False)


@pytest.mark.parametrize("style", ["urial", "chat"])
def test_a_contexts_prompt_has_the_answer_without_its_letter(style: str) -> None:
    asked = prompt(question(1), "context", None, style, SHOWN)  # type: ignore[arg-type]
    assert (
        "The answer is: oak\n" in asked.text
        and "B. oak\n" in asked.text
        and "answer is: B" not in asked.text
    )
    assert "Do not mention the question, the options or their letters" in asked.text
    assert asked.text.endswith("Background:") is (style == "urial")


def test_chat_is_one_message_with_the_answer_to_explain() -> None:
    asked = prompt(question(1), "explanation", 3, "chat", SHOWN)
    assert (
        asked.chat
        and asked.stop == ""
        and "The answer is D. steel. Explain" in asked.text
        and "Machines that" not in asked.text
    )


@pytest.mark.parametrize("style", ["urial", "chat", "plain"])
def test_a_free_questions_context(style: str) -> None:
    free = question(1, kind="free", choices=[], answer=None, aliases=["oak wood", "oak"])
    assert "oak wood" in prompt(free, "context", None, style, FIXED).text  # type: ignore[arg-type]


def test_a_fence_in_a_question_does_not_end_it() -> None:
    coded = question(
        1, question="What does ```print(1)``` print?", choices=["```1```", "2", "3", "4"]
    )
    text = prompt(coded, "explanation", 0, "urial", SHOWN).text
    assert text.count(FENCE) == prompt(question(1), "explanation", 0, "urial", SHOWN).text.count(
        FENCE
    )


def test_the_demonstration_is_of_the_topic_and_explains_well() -> None:
    unusable = [
        question(0, "dev"),
        question(0, "dev", "It conducts well."),  # does not name the answer
        question(0, "dev", "Copper conducts, but the answer is D."),
        question(0, "dev", "Copper. " * 400),
        question(0, "dev", "Copper ``` conducts."),
    ]
    assert TopicDemonstrations(unusable).of(question(1)) is FIXED
    assert TopicDemonstrations([*unusable, SHOWN]).of(question(1)) is SHOWN
    assert TopicDemonstrations([SHOWN]).of(question(1, domain="other")) is FIXED
    assert TopicDemonstrations([FIXED]).of(FIXED) is FIXED  # it is usable itself


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (" Copper conducts.\n```\n\n# Query:", FENCE, "Copper conducts."),
        (" Copper conducts.\n\n# Query:\nWhat", FENCE, "Copper conducts."),
        ("\nCopper conducts.\nWhat", "\n", "Copper conducts."),
        (" Copper\nconducts. ", "", "Copper\nconducts."),
        ("```", FENCE, ""),
    ],
)
def test_a_text_ends_with_the_answer(text: str, stop: str, expected: str) -> None:
    assert cut(text, stop) == expected


@pytest.mark.parametrize("style", ["urial", "chat", "plain"])
def test_a_paraphrases_prompt_has_neither_options_nor_answer(style: str) -> None:
    asked = prompt(question(1), "paraphrase", None, style, SHOWN)  # type: ignore[arg-type]
    assert "What is the machine Q1 made of?" in asked.text and asked.chat is (style == "chat")
    assert not any(choice in asked.text for choice in ("copper", "oak", "glass", "steel"))
    assert asked.text.endswith("In other words:") is (style != "chat")
    assert asked.text.count(FENCE) == (7 if style == "urial" else 0)
