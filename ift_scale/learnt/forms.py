"""The forms in which an item is asked: one thing differs from training in each of them.

- as trained: the prompt of the training set, without its response;
- without context: for items with the required knowledge before the question, without it;
- other order: every option has another letter;
- paraphrase: the question in other words;
- with options: a question that was trained without options, with them and answered by letter;
- free: without options, to be answered in words.

Sets whose responses are the options' texts have `with options` in place of `other order`. All but
the second keep the context. Pure functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ift_scale import draws
from ift_scale.config.learnt import LearntConfig
from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.learnt.items import Presentation
from ift_scale.records import (
    AS_TRAINED,
    FREE,
    OTHER_ORDER,
    PARAPHRASE,
    WITH_OPTIONS,
    WITHOUT_CONTEXT,
    Question,
)
from ift_scale.world.facts import statements_of

Measured = Literal["texts", "letters", "words"]
"""How a prompt is answered: with the likeliest option's text, or its letter, or in own words."""


class AskedForm(NamedTuple):
    """A question to be asked. `asked` has its options in the order shown, `order[i]` is the
    question's own index of option i. `number` counts the prompts of one form."""

    form: str
    number: int
    shown: Presentation
    order: tuple[int, ...]
    asked: Question
    measured: Measured


def forms_of(
    question: Question,
    shown: Presentation,
    config: LearntConfig,
    written: Sequence[str],
    by_text: bool,
) -> Iterator[AskedForm]:
    """Yields all forms of an item. `written`: paraphrases by the user or a model.

    `by_text`: the set's responses are the options' texts, to questions without options.
    """
    trained: Measured = "texts" if by_text else "letters"
    before = shown.context
    whole = before + question.question

    def ask(
        form: str,
        number: int = 0,
        text: str = whole,
        order: tuple[int, ...] = shown.order,
        measured: Measured = trained,
    ) -> AskedForm:
        free = measured == "words"
        changes: dict[str, object] = {
            "question": text,
            "choices": [] if free else [question.choices[i] for i in order],
            "answer": None if free else order.index(_answer(question)),
        }
        asked = question.model_copy(update=changes)
        return AskedForm(form, number, shown, order, asked, measured)

    yield ask(AS_TRAINED)
    if before:
        yield ask(WITHOUT_CONTEXT, text=question.question)
    if by_text:
        yield ask(WITH_OPTIONS, measured="letters")
    for number, shift in enumerate([] if by_text else _shifts(question, config)):
        yield ask(OTHER_ORDER, number, order=shown.order[shift:] + shown.order[:shift])
    for number, text in enumerate(dict.fromkeys([*written, *restated(question)])):
        yield ask(PARAPHRASE, number, before + text)
    yield ask(FREE, measured="words")


def _answer(question: Question) -> int:
    assert question.answer is not None, "sets are built from questions with options"
    return question.answer


def _shifts(question: Question, config: LearntConfig) -> list[int]:
    """Returns the rotations of the options to ask: after one, no option has its old letter."""
    shifts = range(1, len(question.choices))
    key = f"learnt/{config.seed}/{question.id}"
    number_of = {str(shift): shift for shift in shifts}
    chosen = draws.sample(number_of, min(config.orders, len(shifts)), key)
    return [number_of[shift] for shift in chosen]


def restated(question: Question) -> list[str]:
    """Returns the question as statements that end with "what?".

    From the embedded world's two wordings of the fact, or from an explanation of one sentence that
    ends with the right answer and contains it only there: "The remedy for Velora is what?".
    """
    answer = question.choices[_answer(question)]
    statements = [*statements_of(question.id), question.explanation or ""]
    found = []
    for statement in statements:
        sentence = statement.strip().removesuffix(".")
        start = sentence.removesuffix(answer)
        ends_with_it = start != sentence and start[-1:].isspace()
        one_sentence = not any(mark in start for mark in (". ", "? ", "! ", "\n"))
        if ends_with_it and one_sentence and answer.lower() not in start.lower():
            found.append(f"{start}what?")
    return found


def read_paraphrases(path: Path) -> dict[str, list[str]]:
    """Reads the user's paraphrases by question id. DataError names the line of a wrong row."""
    found: dict[str, list[str]] = {}
    for line, row in jsonl.rows(path):
        for name in ("question_id", "question"):
            value = row.get(name)
            if not isinstance(value, str) or not value.strip():
                problem = "must be a text that is not empty"
                remedy = 'Write rows such as {"question_id": "w1", "question": "Which ...?"}'
                raise DataError(Place(path, line, name), problem, remedy, value)
        found.setdefault(row["question_id"], []).append(row["question"])
    return found


def check_used(path: Path, written: Mapping[str, Sequence[str]], asked: set[str]) -> None:
    """Raises DataError if no question of the file is in a set."""
    if not asked & written.keys():
        problem = f"none of its {len(written)} question ids is in an instruction set, which have"
        problem += f" ids such as {min(asked)}"
        remedy = "Use the ids of questions/questions.jsonl"
        raise DataError(Place(path, field="question_id"), problem, remedy, min(written, default=""))
