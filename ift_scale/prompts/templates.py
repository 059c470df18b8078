"""All prompts of the project, so probing, training and evaluation cannot differ by a space.

The few-shot prompt is the paper's (as in its released code): a header, answered demonstrations, and
the question up to `Answer:`. The 0-shot prompt renders the same question text as the user's turn of
the chat template, which also renders training examples.
"""

import random
from collections.abc import Sequence
from typing import Protocol

from ift_scale.errors import DataError, Place
from ift_scale.records import LETTERS, Message, Question

HEADER = (
    "The following are multiple choice questions about {topic}. Please choose the correct answer."
    " \n\n"
)

VICUNA = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant"
    " gives helpful, detailed, and polite answers to the user\\'s questions.' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ (eos_token if message['role'] == 'assistant' else '<|im_end|>') + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"vicuna": VICUNA, "chatml": CHATML}


def question_text(question: Question, order: Sequence[int] | None = None) -> str:
    """Returns the question, its options one per line, and `Answer:`.

    `order` lists the options as shown. A free question has no options.
    """
    choices = question.choices if order is None else [question.choices[index] for index in order]
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question.question, *lines, "Answer:"])


def response_text(
    question: Question, target: int, style: str, order: Sequence[int] | None = None
) -> str:
    """Returns the answer that names option `target`, without explanation.

    `style` is ConstructConfig.response.
    """
    letter = LETTERS[target if order is None else order.index(target)]
    if style == "text":
        return question.choices[target]
    return letter if style == "letter" else f"{letter}. {question.choices[target]}"


def few_shot_prefix(topic: str, demonstrations: Sequence[Question]) -> str:
    """Returns the text before the question in the paper's k-shot prompt, equal within a topic."""
    blocks = [HEADER.format(topic=topic)]
    for shown in demonstrations:
        assert shown.answer is not None
        blocks.append(
            f"{question_text(shown)}{response_text(shown, shown.answer, 'letter_text')}\n\n"
        )
    return "".join(blocks)


def few_shot_prompt(question: Question, demonstrations: Sequence[Question]) -> str:
    """Returns the paper's k-shot prompt."""
    return few_shot_prefix(question.topic, demonstrations) + question_text(question)


def open_prefix(topic: str, demonstrations: Sequence[Question]) -> str:
    """Returns the few-shot prefix of prompts without options, which does not name the topic.

    It precedes free questions and option texts.
    """
    shown = [f"{open_text(question)} {gold_text(question)}" for question in demonstrations]
    return "".join(f"{text}\n\n" for text in shown)


def open_text(question: Question) -> str:
    """Returns a question without options, up to `Answer:`."""
    return f"Question: {question.question}\nAnswer:"


def gold_text(question: Question) -> str:
    """Returns the right answer in words: the right option, or a free question's first alias."""
    return question.aliases[0] if question.answer is None else question.choices[question.answer]


def without_options(question: Question) -> Question:
    """Returns a choice question as it is asked without its options."""
    return question.model_copy(update={"choices": []})


def chat_messages(
    question: Question, order: Sequence[int] | None = None, context: str | None = None
) -> list[Message]:
    """Returns the user's turn: the question, after its context if there is one."""
    before = f"Context: {context}\n" if context else ""
    return [Message(role="user", content=before + question_text(question, order))]


class DemonstrationSource(Protocol):
    """Chooses the few-shot demonstrations of a question."""

    def of(self, question: Question, draw: int = 0) -> list[Question]:
        """Returns the demonstrations, the same for all questions of a collection and topic."""


class Demonstrations:
    """The few-shot demonstrations of each topic: its dev questions, shuffled, first `num_shots`.

    A pool and a benchmark may have topics of the same name (MMLU has jurisprudence); they do not
    share demonstrations. A free question uses the topic's free dev questions or, if there are none,
    its choice questions without options.
    """

    def __init__(self, questions: Sequence[Question], num_shots: int, seed: int):
        self.num_shots, self._seed = num_shots, seed
        self._by_topic: dict[tuple[str, str, str], list[Question]] = {}
        for question in questions:
            if question.split == "dev":
                self._by_topic.setdefault(
                    (question.kind, question.collection, question.topic), []
                ).append(question)

    def of(self, question: Question, draw: int = 0) -> list[Question]:
        """Returns the demonstrations for `question`.

        Draw 0 is the paper's. If a topic has exactly `num_shots` dev questions, another draw is
        another order of them. Raises DataError if the topic has fewer.
        """
        dev = self._by_topic.get((question.kind, question.collection, question.topic), [])
        if question.kind == "free" and not dev:
            dev = self._by_topic.get(("choice", question.collection, question.topic), [])
        if len(dev) < self.num_shots:
            raise DataError(
                Place(f"questions about '{question.topic}'", field="split"),
                f"needs {self.num_shots} demonstrations and has {len(dev)} dev questions",
                "Add dev questions to the source, or lower probe.num_shots",
            )
        # The paper's code seeds the global generator once per pool and shuffles indices.
        order = list(range(len(dev)))
        random.Random(self._seed if draw == 0 else f"{self._seed}/{draw}").shuffle(order)
        return [dev[index] for index in order[: self.num_shots]]
