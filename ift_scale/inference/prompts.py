"""Every prompt of the project, so that probing, training and evaluation cannot differ by a space.

The few-shot prompt is the paper's (as in its released code): a header, answered demonstrations, the question up to `Answer:`.
The 0-shot prompt is the chat template's, with the same question text as the user's turn; training examples are rendered by
the same template.
"""

import random
from collections.abc import Sequence
from typing import Literal

from ift_scale.errors import DataError, Place
from ift_scale.records import LETTERS, Message, Question

HEADER = "The following are multiple choice questions about {topic}. Please choose the correct answer. \n\n"

VICUNA = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user\\'s questions.' }}"
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
# What stands between the generation prompt and an answer's first letter.
ANSWER_SEPARATOR = {"vicuna": " ", "chatml": ""}


def question_text(question: Question) -> str:
    """The question, its options a line each, and `Answer:`."""
    lines = [question.question]
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([*lines, "Answer:"])


def response_text(question: Question, target: int, style: Literal["letter", "letter_text"]) -> str:
    """The assistant's answer that names option `target`; `style` as in ConstructConfig.response."""
    return LETTERS[target] if style == "letter" else f"{LETTERS[target]}. {question.choices[target]}"


def few_shot_prompt(question: Question, demonstrations: Sequence[Question]) -> str:
    """The paper's k-shot prompt; the part before the question is the same for all questions of a topic."""
    blocks = [HEADER.format(topic=question.topic)]
    for shown in demonstrations:
        assert shown.answer is not None
        blocks.append(f"{question_text(shown)}{response_text(shown, shown.answer, 'letter_text')}\n\n")
    return "".join(blocks) + question_text(question)


def chat_messages(question: Question) -> list[Message]:
    return [Message(role="user", content=question_text(question))]


class Demonstrations:
    """The few-shot demonstrations of each topic: its dev questions, shuffled once, the first `num_shots`.

    A pool and a benchmark may have a topic of the same name (MMLU has a subject jurisprudence) and do not share them.
    """

    def __init__(self, questions: Sequence[Question], num_shots: int, seed: int):
        self.num_shots = num_shots
        self._by_topic: dict[tuple[str, str], list[Question]] = {}
        for question in questions:
            if question.split == "dev" and question.kind == "choice":
                self._by_topic.setdefault((question.collection, question.topic), []).append(question)
        for topic, dev in self._by_topic.items():
            # The paper's code seeds the global generator once for each pool and shuffles indices.
            order = list(range(len(dev)))
            random.Random(seed).shuffle(order)
            self._by_topic[topic] = [dev[index] for index in order]

    def of(self, question: Question) -> list[Question]:
        """The demonstrations for `question`; DataError when its topic has too few dev questions."""
        dev = self._by_topic.get((question.collection, question.topic), [])
        if len(dev) < self.num_shots:
            raise DataError(
                Place(f"questions about '{question.topic}'", field="split"),
                f"{self.num_shots} demonstrations are needed and {len(dev)} dev questions are there",
                "Add dev questions to the source, or lower probe.num_shots",
            )
        return dev[: self.num_shots]
