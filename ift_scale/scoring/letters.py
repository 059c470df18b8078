"""Scoring choice questions by their letters: questions in, a table of raw log-probabilities out.

The table has one row per question. Probing and evaluation differ only in how a prompt is written
(`FewShot`, `Chat`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import pyarrow as pa

from ift_scale.config.engines import ProbeConfig
from ift_scale.engines.protocol import Engine
from ift_scale.errors import DataError, Place
from ift_scale.prompts import templates
from ift_scale.prompts.controls import ChatText
from ift_scale.prompts.prefixes import Prefixes
from ift_scale.prompts.templates import DemonstrationSource
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import View, ViewsOf, views_of
from ift_scale.records import Question
from ift_scale.scoring.cloze import Cloze, ClozeRequests, FewShotTexts
from ift_scale.scoring.options import (
    WHOLE_PROMPTS,
    LetterTokens,
    OptionRequest,
    not_a_number,
    num_tokens,
    option_logprobs,
)


class PromptWriter(Protocol):
    """Writes the questions of one topic as engine requests."""

    def requests(
        self, questions: Sequence[Question], views: Sequence[View]
    ) -> Sequence[OptionRequest]:
        """Returns one request per (question, view) pair; all views are of one draw."""


class FewShot:
    """Writes the paper's few-shot prompt."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        demonstrations: DemonstrationSource,
        whole_prompts: bool = False,
    ):
        self.letters = LetterTokens(tokenizer, WHOLE_PROMPTS, whole=whole_prompts)
        self.prefixes = Prefixes(
            tokenizer, demonstrations, templates.few_shot_prefix, whole_prompts
        )

    def requests(self, questions: Sequence[Question], views: Sequence[View]) -> list[OptionRequest]:
        texts = [
            templates.question_text(question, view.order)
            for question, view in zip(questions, views, strict=True)
        ]
        draw = views[0].draw
        ids = self.prefixes.encode(questions[0], draw, texts)
        return [
            self.letters.request(
                *pair, text, len(question.choices), self.prefixes.whole_prompt(question, draw, text)
            )
            for pair, text, question in zip(ids, texts, questions, strict=True)
        ]


def chat_prompt(
    tokenizer: PromptTokenizer,
    template: str,
    question: Question,
    order: Sequence[int] | None = None,
) -> ChatText:
    """Returns a question's 0-shot chat prompt.

    Raises DataError naming the question if the template or the tokenizer cannot take it.
    """
    try:
        return tokenizer.render(templates.chat_messages(question, order), template, generation=True)
    except ValueError as error:
        remedy = "Change or remove the question, or set evaluate.template to another"
        raise DataError(
            Place(f"question {question.id}"), str(error), remedy, question.question
        ) from error


class Chat:
    """Writes the 0-shot prompt in a chat template, with the same tokens as in training.

    `response` is ConstructConfig's: the form of the answers that training used.
    """

    def __init__(self, tokenizer: PromptTokenizer, template: str, response: str = "letter_text"):
        self.tokenizer, self.template = tokenizer, template
        following = "" if response == "letter" else ". a"
        remedy = "Choose another evaluate.template"
        self.letters = LetterTokens(
            tokenizer, remedy, tokenizer.chat(template).turn.separator, following
        )

    def requests(self, questions: Sequence[Question], views: Sequence[View]) -> list[OptionRequest]:
        texts = [
            chat_prompt(self.tokenizer, self.template, question, view.order)
            for question, view in zip(questions, views, strict=True)
        ]
        return self.letters.after(texts, [len(question.choices) for question in questions])


@dataclass(frozen=True)
class LetterRequests:
    """A chunk's requests in engine order; `source[r]` is (question, view) of request r."""

    questions: list[Question]
    views: list[tuple[View, ...]]
    requests: list[OptionRequest]
    source: np.ndarray
    cloze: ClozeRequests | None

    @property
    def tokens(self) -> int:
        return sum(map(num_tokens, self.requests)) + (self.cloze.tokens if self.cloze else 0)

    @property
    def num_requests(self) -> int:
        return len(self.requests) + (self.cloze.num_requests if self.cloze else 0)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        """Yields (question, tokens that the engine reads) for every request."""
        for (number, _), request in zip(self.source.tolist(), self.requests, strict=True):
            yield self.questions[number], num_tokens(request)
        if self.cloze:
            yield from self.cloze.lengths()


class LetterAsker:
    """Turns questions into `LetterRequests` (`write`) and these, with an engine, into a table."""

    def __init__(self, writer: PromptWriter, views_of: ViewsOf, cloze: Cloze | None = None):
        self.writer, self.views_of, self.cloze = writer, views_of, cloze

    def write(self, questions: list[Question]) -> LetterRequests:
        """Writes requests topic by topic and draw by draw, so shared prefixes are adjacent."""
        views = [self.views_of(question) for question in questions]
        requests: list[OptionRequest] = []
        source: list[tuple[int, int]] = []
        for _, numbers in groupby(
            range(len(questions)), key=lambda i: (questions[i].collection, questions[i].topic)
        ):
            # One draw after the other: all questions of a topic and a draw share a prefix.
            members = list(numbers)
            for draw in sorted({view.draw for i in members for view in views[i]}):
                pairs = [
                    (i, v) for i in members for v, view in enumerate(views[i]) if view.draw == draw
                ]
                requests += self.writer.requests(
                    [questions[i] for i, _ in pairs], [views[i][v] for i, v in pairs]
                )
                source += pairs
        cloze = self.cloze.write(questions) if self.cloze else None
        return LetterRequests(questions, views, requests, np.array(source), cloze)

    def ask(self, engine: Engine, written: LetterRequests) -> pa.Table:
        """Returns the table of raw log-probabilities, one row per question.

        Raises DataError if the model returns NaN or only zero probabilities.
        """
        logprobs = option_logprobs(engine, written.requests)
        # From here on a flat array with the options of all requests, in the engine's order.
        counts = np.array([len(request.options) for request in written.requests])
        _refuse_nan(logprobs, counts, written)
        if (written.source[:, 1] > 0).any():
            # With several views a question's requests are apart, because draws are asked in turn.
            logprobs = _sorted_by_question(logprobs, counts, written.source)
        table = _table(written, logprobs)
        if self.cloze and written.cloze:
            by_text = self.cloze.ask(engine, written.cloze)
            for name in by_text.column_names:
                table = table.append_column(name, by_text[name])
        return table


def _refuse_nan(logprobs: np.ndarray, counts: np.ndarray, written: LetterRequests) -> None:
    """Raises DataError for a question whose log-probabilities contain NaN or are all -inf."""
    starts = counts.cumsum() - counts
    wrong = np.isnan(np.add.reduceat(logprobs, starts)) | np.isneginf(
        np.maximum.reduceat(logprobs, starts)
    )
    if wrong.any():
        raise not_a_number(written.questions[written.source[wrong.argmax(), 0]])


def _sorted_by_question(logprobs: np.ndarray, counts: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Reorders the values by question, then by view."""
    parts = np.split(logprobs, counts.cumsum()[:-1])
    return np.concatenate([parts[i] for i in np.lexsort((source[:, 1], source[:, 0]))])


def _table(written: LetterRequests, logprobs: np.ndarray) -> pa.Table:
    """Returns one row per question. `logprobs` are view by view in the order shown."""
    questions = written.questions
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(question, name) for question in questions], pa.string())
        for name in ("id", "domain", "subject", "collection", "split", "group")
    }
    columns["answer"] = pa.array([question.answer for question in questions], pa.int16())
    num_views = np.array([len(views) for views in written.views])
    num_choices = np.array([len(question.choices) for question in questions])
    flat_draws = [view.draw for views in written.views for view in views]
    flat_orders = [index for views in written.views for view in views for index in view.order]
    columns["draws"] = _lists(num_views, pa.array(flat_draws, pa.int16()))
    columns["orders"] = _lists(num_views * num_choices, pa.array(flat_orders, pa.int8()))
    columns["logprobs"] = _lists(num_views * num_choices, pa.array(logprobs))
    return pa.table(columns)


def _lists(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def few_shot_asker(
    tokenizer: PromptTokenizer,
    demonstrations: DemonstrationSource,
    config: ProbeConfig,
    cloze: bool = True,
) -> LetterAsker:
    """Returns the few-shot asker for choice questions that the settings describe.

    `cloze`: asks for the options' texts too, if the settings do.
    """
    score, whole = config.reliability.cloze, config.whole_prompts
    texts = None
    if cloze and score:
        texts = Cloze(FewShotTexts(tokenizer, demonstrations, whole), score)
    few_shot = FewShot(tokenizer, demonstrations, whole)
    return LetterAsker(few_shot, views_of(config.reliability), texts)
