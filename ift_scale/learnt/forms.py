"""The forms in which an item is asked: one thing differs from training in each of them.

- as trained: the prompt of the training set, without its response;
- without context: for items with the required knowledge before the question, without it;
- other order: every option has another letter;
- paraphrase: the question in other words;
- free: without options, to be answered in words.

All but the second keep the context. Pure functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ift_scale import draws
from ift_scale.config.learnt import LearntConfig
from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.learnt.items import Presentation
from ift_scale.records import Question
from ift_scale.world.facts import statements_of

AS_TRAINED, FREE = "as trained", "free"
FORMS = (AS_TRAINED, "without context", "other order", "paraphrase", FREE)


class AskedForm(NamedTuple):
    """A question to be asked. `asked` has its options in the order shown, `order[i]` is the
    question's own index of option i. `number` counts the prompts of one form."""

    form: str
    number: int
    shown: Presentation
    order: tuple[int, ...]
    asked: Question


def forms_of(
    question: Question, shown: Presentation, config: LearntConfig, written: Sequence[str]
) -> Iterator[AskedForm]:
    """Yields all forms of an item. `written`: the user's paraphrases of the question."""

    def ask(form: str, number: int, text: str, order: tuple[int, ...]) -> AskedForm:
        changes: dict[str, object] = {
            "question": text,
            "choices": [] if form == FREE else [question.choices[i] for i in order],
            "answer": None if form == FREE else order.index(_answer(question)),
        }
        return AskedForm(form, number, shown, order, question.model_copy(update=changes))

    before = shown.context
    yield ask(AS_TRAINED, 0, before + question.question, shown.order)
    if before:
        yield ask("without context", 0, question.question, shown.order)
    for number, shift in enumerate(_shifts(question, config)):
        order = shown.order[shift:] + shown.order[:shift]
        yield ask("other order", number, before + question.question, order)
    for number, text in enumerate(dict.fromkeys([*written, *restated(question)])):
        yield ask("paraphrase", number, before + text, shown.order)
    yield ask(FREE, 0, before + question.question, shown.order)


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
