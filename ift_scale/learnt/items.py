"""Training items as they were shown: instruction sets in, the order, context and target of each.

A set's file has the texts that an arm was trained on. The order of the options and the context are
recovered from them and the pool's question, because a set may have moved the target to another
letter (`construct.matching.letters`), show no options (`construct.response: text`), or have put the
required knowledge before the question.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json

from ift_scale import draws
from ift_scale.errors import DataError, Place
from ift_scale.prompts.templates import question_text, without_options
from ift_scale.records import LETTERS, Question


class ItemText(NamedTuple):
    """An item as its file has it: the user's turn and the letter of the option that it teaches."""

    line: int
    prompt: str
    letter: str


class Presentation(NamedTuple):
    """How a set shows a question: `order[i]` is the option at letter i, in the pool's order if no
    options are shown; `context` is the text before the question, empty if there is none."""

    order: tuple[int, ...]
    context: str


class TrainedItem(NamedTuple):
    """`target`: the option that the set teaches, which need not be the right one."""

    shown: Presentation
    target: int


def read_texts(path: Path, max_items: int, seed: int) -> dict[str, ItemText]:
    """Returns the items of a set by question id: all of them, or a random draw of `max_items`.

    Items that teach no option (refusals) and general instructions are left out. DataError if none
    is left.
    """
    found: dict[str, ItemText] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = from_json(line)
            id, letter = row["meta"].get("question_id"), row["meta"].get("target")
            if id is not None and letter is not None:
                found[id] = ItemText(number, row["messages"][-2]["content"], letter)
    if not found:
        problem = "the set teaches no option of a question, so nothing can be asked again"
        raise DataError(Place(path), problem, "Remove the setting, or set learnt.on to false")
    chosen = draws.sample(found, min(max_items, len(found)), f"learnt/{seed}")
    return {id: found[id] for id in chosen}


def as_shown(path: Path, text: ItemText, question: Question, by_text: bool) -> TrainedItem:
    """Returns the order, the context and the target of an item.

    Sets show a question's options in their own order or with two of them swapped; those that teach
    an option's text (`by_text`) show none. Raises DataError if the text is not that of the pool's
    question.
    """
    own, *others = _orders(len(question.choices))
    if by_text:
        endings = {own: question_text(without_options(question))}
    else:
        endings = {order: question_text(question, order) for order in (own, *others)}
    for order, ending in endings.items():
        if text.prompt.endswith(ending):
            shown = Presentation(order, text.prompt.removesuffix(ending))
            return TrainedItem(shown, order[LETTERS.index(text.letter)])
    problem = f"does not have the text of the pool's question {question.id}"
    remedy = "Run `ift-scale construct` again"
    raise DataError(Place(path, text.line, "messages"), problem, remedy, text.prompt)


def _orders(num_choices: int) -> Iterator[tuple[int, ...]]:
    own = list(range(num_choices))
    yield tuple(own)
    for a, b in combinations(own, 2):
        swapped = list(own)
        swapped[a], swapped[b] = b, a
        yield tuple(swapped)


def presentations(items: Mapping[str, Mapping[str, TrainedItem]]) -> dict[str, list[Presentation]]:
    """Returns the distinct presentations of each question over the sets of all arms.

    The base model is asked each of them once.
    """
    found: dict[str, dict[Presentation, None]] = {}
    for of_arm in items.values():
        for id, item in of_arm.items():
            found.setdefault(id, {})[item.shown] = None
    return {id: list(shown) for id, shown in found.items()}
