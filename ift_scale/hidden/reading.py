"""Questions to a model's states: one row per question, asked as the run asks this model.

The base model gets the probe's few-shot prompt, an arm the 0-shot prompt of the evaluation. Test
questions show their options in their own order, so that the last layer's lens is the measured
answer. Fit questions show them in a random order, so that no letter is right more often.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ift_scale.draws import rank
from ift_scale.engines.protocol import ScoreRequest
from ift_scale.prompts.views import View, plain
from ift_scale.records import Question
from ift_scale.scoring.letters import LetterAsker, LetterRequests, PromptWriter
from ift_scale.scoring.options import OptionRequest

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


class StateAsker:
    """Turns questions into a table of states.

    Columns: id; split; answer, control and num_choices, as letters' positions; lens, one position
    per layer (-1 if undefined); `STATE` of every layer, a list of the width.
    """

    def __init__(self, writer: PromptWriter, seed: int):
        self.seed = seed
        self.lettered = LetterAsker(writer, partial(view_of, seed))

    def write(self, questions: list[Question]) -> LetterRequests:
        return self.lettered.write(questions)

    def ask(self, engine: Any, written: Any) -> pa.Table:
        """`engine` has `hidden_states`: the transformers engine or its process."""
        requests = [_first_tokens(request) for request in written.requests]
        states_RLH, lens_RL = engine.hidden_states(requests)
        row_Q = np.argsort(written.source[:, 0], kind="stable")  # requests go topic by topic
        states_QLH, lens_QL = states_RLH[row_Q], lens_RL[row_Q]
        orders = [view.order for (view,) in written.views]
        pairs = list(zip(written.questions, orders, strict=True))
        columns = {
            "id": pa.array([q.id for q in written.questions], pa.string()),
            "split": pa.array([q.split for q in written.questions], pa.string()),
            "answer": _positions([o.index(q.answer) for q, o in pairs if q.answer is not None]),
            "control": _positions([o.index(control_option(self.seed, q)) for q, o in pairs]),
            "num_choices": _positions([len(o) for o in orders]),
            "lens": _lists(lens_QL),
        }
        for layer in range(states_QLH.shape[1]):
            columns[STATE.format(layer)] = _lists(np.ascontiguousarray(states_QLH[:, layer]))
        return pa.table(columns)


def _first_tokens(request: OptionRequest) -> ScoreRequest:
    if isinstance(request, ScoreRequest):
        return request
    return ScoreRequest(request.prefix, request.suffix, [option[0] for option in request.options])


def _positions(values: Sequence[int]) -> pa.Array:
    return pa.array(values, pa.int16())


def _lists(values_QH: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_QH.ravel()), values_QH.shape[1])
