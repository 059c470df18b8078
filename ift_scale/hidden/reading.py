"""Questions to a model's states, asked as the run asks this model.

The base model gets the probe's few-shot prompt, an arm the 0-shot prompt of the evaluation.

- Answers by letters (`LetterStates`): one state per question, before the letter. Test questions
  show their options in their own order, so that the last layer's lens is the measured answer. Fit
  questions show them in a random order, so that no letter is right more often.
- Answers by texts (`TextStates`): one state per option, at the last token of its text after the
  question without options. Where one option is the beginning of another, the texts of the question
  include the end of the answer, as when they are scored (`scoring.cloze`).

Columns: id; answer and control, the right option and the control task's (with letters, as shown);
num_choices; lens, an option as shown per layer (-1 if undefined); `STATE` of every layer, a list of
the width. The rows of a question's options follow each other.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ift_scale.draws import rank
from ift_scale.engines.protocol import ScoreRequest
from ift_scale.prompts.views import View, plain
from ift_scale.records import Question
from ift_scale.scoring.cloze import OptionWriter
from ift_scale.scoring.letters import LetterAsker, LetterRequests, PromptWriter
from ift_scale.scoring.options import OptionRequest, num_tokens

STATE = "state{}"


def view_of(seed: int, question: Question) -> tuple[View, ...]:
    """Returns the one view in which a question is asked."""
    if question.split != "train":
        return plain(question)
    order = list(range(len(question.choices)))
    random.Random(f"hidden/{seed}/{question.id}").shuffle(order)
    return (View(0, tuple(order)),)


def control_option(seed: int, question: Question) -> int:
    """Returns the control task's answer: the option whose text comes first in a random order.

    After Hewitt and Liang (2019, arXiv 1909.03368): a random function of the options' texts, which
    a probe can only reproduce by memorising texts that occur in several questions.
    """
    key = f"hidden/control/{seed}"
    texts = [" ".join(text.split()) for text in question.choices]
    return min(range(len(texts)), key=lambda i: rank(key, texts[i]))


class LetterStates:
    """Turns questions into states before the letter.

    The engine that it asks has `hidden_states`: the transformers engine or its process.
    """

    def __init__(self, writer: PromptWriter, seed: int):
        self.seed = seed
        self.lettered = LetterAsker(writer, partial(view_of, seed))

    def write(self, questions: list[Question]) -> LetterRequests:
        return self.lettered.write(questions)

    def ask(self, engine: Any, written: LetterRequests) -> pa.Table:
        requests = [_first_tokens(request) for request in written.requests]
        states_RLH, lens_RL = engine.hidden_states(requests)
        row_Q = np.argsort(written.source[:, 0], kind="stable")  # requests go topic by topic
        orders = [view.order for (view,) in written.views]
        rows = [
            (q.id, order.index(q.answer), order.index(control_option(self.seed, q)), len(order))
            for q, order in zip(written.questions, orders, strict=True)
            if q.answer is not None
        ]
        return _table(rows, states_RLH[row_Q], lens_RL[row_Q])


class OptionRequests(NamedTuple):
    """One request per option, question after question; the engine reads all of a text's tokens."""

    questions: list[Question]
    requests: list[ScoreRequest]

    @property
    def tokens(self) -> int:
        return sum(map(num_tokens, self.requests))

    @property
    def num_requests(self) -> int:
        return len(self.requests)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        owners = [question for question in self.questions for _ in question.choices]
        yield from zip(owners, map(num_tokens, self.requests), strict=True)


class TextStates:
    """Turns questions into states at the end of each option's text, with the same engine."""

    def __init__(self, writer: OptionWriter, seed: int):
        self.writer, self.seed = writer, seed

    def write(self, questions: list[Question]) -> OptionRequests:
        texts = [r for q in questions for r in self.writer.requests(q, q.choices)]
        states = [ScoreRequest(r.prefix, r.suffix + r.continuation, []) for r in texts]
        return OptionRequests(questions, states)

    def ask(self, engine: Any, written: OptionRequests) -> pa.Table:
        states_RLH, lens_RL = engine.hidden_states(written.requests)
        rows = [
            (q.id, q.answer, control_option(self.seed, q), len(q.choices))
            for q in written.questions
            for _ in q.choices
            if q.answer is not None
        ]
        return _table(rows, states_RLH, lens_RL)


def _table(
    rows: Sequence[tuple[str, int, int, int]], states_RLH: np.ndarray, lens_RL: np.ndarray
) -> pa.Table:
    """`rows`: id, answer, control and num_choices of each state."""
    ids, *numbers = zip(*rows, strict=True)
    names = ("answer", "control", "num_choices")
    columns = {"id": pa.array(ids, pa.string())} | {
        name: pa.array(values, pa.int16()) for name, values in zip(names, numbers, strict=True)
    }
    columns["lens"] = _lists(lens_RL)
    for layer in range(states_RLH.shape[1]):
        columns[STATE.format(layer)] = _lists(np.ascontiguousarray(states_RLH[:, layer]))
    return pa.table(columns)


def _first_tokens(request: OptionRequest) -> ScoreRequest:
    if isinstance(request, ScoreRequest):
        return request
    return ScoreRequest(request.prefix, request.suffix, [option[0] for option in request.options])


def _lists(values_QH: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_QH.ravel()), values_QH.shape[1])
