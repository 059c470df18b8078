"""Cloze: choice questions scored by the likelihood of each option's text, without letters.

An option's tokens are those of its text. If one option is the beginning of another ("Guinea",
"Guinea-Bissau"), all options of the question include the end of the answer: the blank line after a
demonstration, the mark that ends the assistant's turn.

Three scores make options of different lengths comparable; their softmax over a question's options
are the probabilities:

    sum   log p(text | question), in nats
    byte  the same per UTF-8 byte, times the mean number of bytes of the question's options, so that
          confidence does not shrink with length (the order of acc_norm in lm-evaluation-harness)
    pmi   log p(text | question) - log p(text | empty question): pointwise mutual information
          (Holtzman et al. 2021, arXiv 2104.08315)

Shapes: Q questions of one option count C.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from ift_scale.config.engines import ClozeScore
from ift_scale.engines.protocol import Engine, TextRequest
from ift_scale.prompts import templates
from ift_scale.prompts.prefixes import Prefixes
from ift_scale.prompts.templates import DemonstrationSource
from ift_scale.prompts.tokenizer import PromptTokenizer, common_prefix
from ift_scale.records import Message, Question
from ift_scale.scoring.blocks import Block, softmax
from ift_scale.scoring.options import Continuations, are_distinct, not_a_number

NUM_BINS = 10
"""Bins of confidence for calibration."""
EMPTY = ""
"""The empty question of `pmi`."""


class OptionWriter(Protocol):
    """Writes the texts of options as engine requests."""

    def requests(self, question: Question, texts: Sequence[str]) -> list[TextRequest]:
        """Returns one request per text: the likelihood of answering `question` with it."""


class FewShotTexts:
    """After the few-shot prompt of free questions, which lists no options."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        demonstrations: DemonstrationSource,
        whole_prompts: bool = False,
    ):
        self.continuations = Continuations(tokenizer, whole_prompts)
        self.prefixes = Prefixes(tokenizer, demonstrations, templates.open_prefix, whole_prompts)

    def requests(self, question: Question, texts: Sequence[str]) -> list[TextRequest]:
        prompt = templates.open_text(question)
        (pair,) = self.prefixes.encode(question, 0, [prompt])
        whole = self.prefixes.whole_prompt(question, 0, prompt)
        return self.continuations.requests(*pair, prompt, [f" {text}" for text in texts], whole)


class ChatTexts:
    """As the assistant's answer in a chat template, with the tokens of a training example."""

    def __init__(self, tokenizer: PromptTokenizer, template: str):
        self.tokenizer, self.template = tokenizer, template
        one, other = (
            self._answered([Message(role="user", content="Which?")], text)[1] for text in "AB"
        )
        self._end = common_prefix([one[::-1], other[::-1]])[::-1]
        """The tokens that end the assistant's turn."""

    def requests(self, question: Question, texts: Sequence[str]) -> list[TextRequest]:
        asked = templates.chat_messages(templates.without_options(question))
        rows = [self._answered(asked, text) for text in texts]
        bare = [self._without_end(answer) for _, answer in rows]
        if are_distinct(bare) or len(texts) == 1:
            rows = [(before, answer) for (before, _), answer in zip(rows, bare, strict=True)]
        # An answer's first token may contain the end of the prompt: score from where they differ.
        shared = len(common_prefix([before for before, _ in rows]))
        ids = [before + answer for before, answer in rows]
        return [TextRequest([], row[:shared], row[shared:]) for row in ids]

    def _answered(self, asked: Sequence[Message], text: str) -> tuple[list[int], list[int]]:
        """Returns the ids before the answer, and its own with the end of the turn."""
        answer = Message(role="assistant", content=text)
        ids, supervised = self.tokenizer.example([*asked, answer], self.template)
        start, end = supervised.index(True), len(ids) - supervised[::-1].index(True)
        return ids[:start], ids[start:end]

    def _without_end(self, answer: list[int]) -> list[int]:
        kept = len(answer) - len(self._end)
        return answer[:kept] if kept > 0 and answer[kept:] == self._end else answer


class ClozeRequests(NamedTuple):
    """Requests of `questions`: one per option, then one per text after the empty question.

    `empty` (num_options,) are the positions of the options' texts among the latter; None without
    `pmi`.
    """

    questions: Sequence[Question]
    requests: list[TextRequest]
    empty: np.ndarray | None

    @property
    def tokens(self) -> int:
        """Tokens of all requests, each with its prompt."""
        return sum(len(r.prefix) + len(r.suffix) + len(r.continuation) for r in self.requests)

    @property
    def num_requests(self) -> int:
        return len(self.requests)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        """Yields (question, tokens that the engine reads) for every option's request."""
        owners = [question for question in self.questions for _ in question.choices]
        # The texts after the empty question are shorter.
        for question, r in zip(owners, self.requests, strict=False):
            yield question, len(r.prefix) + len(r.suffix) + len(r.continuation) - 1


class Cloze:
    """Turns questions into `ClozeRequests` (`write`) and these, with an engine, into columns."""

    def __init__(self, writer: OptionWriter, score: ClozeScore):
        self.writer, self.score = writer, score

    def write(self, questions: Sequence[Question]) -> ClozeRequests:
        requests = [r for q in questions for r in self.writer.requests(q, q.choices)]
        if self.score != "pmi":
            return ClozeRequests(questions, requests, None)
        # Options recur in a pool: each text is asked once per topic.
        place: dict[tuple[str, str, tuple[int, ...]], int] = {}
        empty = []
        for question in questions:
            without = question.model_copy(update={"question": EMPTY})
            for request in self.writer.requests(without, question.choices):
                key = (question.collection, question.topic, tuple(request.continuation))
                if key not in place:
                    place[key] = len(place)
                    requests.append(request)
                empty.append(place[key])
        return ClozeRequests(questions, requests, np.array(empty))

    @staticmethod
    def ask(engine: Engine, written: ClozeRequests) -> pa.Table:
        """Returns the columns of a shard: `cloze`, `bytes` and, with pmi, `empty`.

        Each is a list over a question's options. `cloze` and `empty` are log-likelihoods in nats.
        Raises DataError for a question with NaN or -inf among them.
        """
        found, questions = engine.loglikelihood(written.requests), written.questions
        texts = [choice for question in questions for choice in question.choices]
        values = {
            "cloze": pa.array(found[: len(texts)]),
            "bytes": pa.array([len(text.encode()) for text in texts], pa.int32()),
        }
        if written.empty is not None:
            values["empty"] = pa.array(found[len(texts) :][written.empty])
        lengths = [len(question.choices) for question in questions]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        table = pa.table(
            {name: pa.ListArray.from_arrays(offsets, flat) for name, flat in values.items()}
        )
        _refuse_nan(table, questions)
        return table


def _refuse_nan(table: pa.Table, questions: Sequence[Question]) -> None:
    for name in {"cloze", "empty"} & set(table.column_names):
        for question, values in zip(questions, table[name].to_pylist(), strict=True):
            if not np.isfinite(values).all():
                raise not_a_number(question)


def option_scores(
    score: ClozeScore, cloze: np.ndarray, bytes: np.ndarray, empty: np.ndarray | None = None
) -> np.ndarray:
    """Returns the options' scores (..., C) in nats; see the module's docstring.

    The arrays, of the same shape, are what `Cloze.ask` returns; `pmi` needs `empty`.
    """
    if score == "byte":
        return cloze * bytes.mean(-1, keepdims=True) / bytes
    if score == "pmi":
        assert empty is not None
        return cloze - empty
    return cloze


def calibration_bins(confidence_Q: np.ndarray, right_Q: np.ndarray) -> np.ndarray:
    """Returns questions, summed confidence and right answers by confidence bin, (3, bins)."""
    bin_Q = np.minimum((confidence_Q * NUM_BINS).astype(int), NUM_BINS - 1)
    weights = (np.ones(len(bin_Q)), confidence_Q, right_Q)
    return np.stack([np.bincount(bin_Q, weight, NUM_BINS) for weight in weights])


@dataclass
class _Calibration:
    right: float = 0
    nll: float = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, NUM_BINS)))


@dataclass
class ClozeSummary:
    """Statistics of all questions for the report, accumulated block by block.

    All scores that the shards allow are compared on the same questions: accuracy, the negative
    log-likelihood of the right option, and the expected calibration error (Guo et al. 2017).
    """

    questions: int = 0
    chosen: str = ""
    agrees: float = 0
    """Questions whose prediction by letters is the same."""
    scores: dict[str, _Calibration] = field(default_factory=dict)

    def probabilities(self, score: ClozeScore, block: Block) -> np.ndarray:
        """Returns the softmax of the options' scores (Q, C), and counts the block."""
        names: list[ClozeScore] = ["sum", "byte"] if block.empty is None else ["sum", "byte", "pmi"]
        assert block.cloze is not None and block.bytes is not None
        measured = (block.cloze, block.bytes, block.empty)
        probs = {name: softmax(option_scores(name, *measured)) for name in names}
        for name, probs_QC in probs.items():
            self._add(name, probs_QC, block.answer)
        self.questions += len(block.answer)
        self.chosen = score
        letters_Q = block.probs[:, 0].argmax(-1)
        self.agrees += float((probs[score].argmax(-1) == letters_Q).sum())
        return probs[score]

    def _add(self, name: str, probs_QC: np.ndarray, answer_Q: np.ndarray) -> None:
        found = self.scores.setdefault(name, _Calibration())
        right_Q = probs_QC.argmax(-1) == answer_Q
        gold_Q = np.take_along_axis(probs_QC, answer_Q[:, None].astype(int), -1)
        found.right += float(right_Q.sum())
        found.nll -= float(np.log(np.maximum(gold_Q, np.finfo(float).tiny)).sum())
        found.bins += calibration_bins(probs_QC.max(-1), right_Q)

    def as_json(self) -> dict[str, Any]:
        n = self.questions
        scores = {
            name: {
                "accuracy": found.right / n,
                "nll": found.nll / n,
                "ece": float(np.abs(found.bins[1] - found.bins[2]).sum() / n),
            }
            for name, found in self.scores.items()
        }
        own = {"score": self.chosen, "agreement": self.agrees / n}
        return scores[self.chosen] | own | {"scores": scores}
