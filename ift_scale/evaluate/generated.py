"""Generated answers of an arm, in addition to its letters: greedy, 0-shot in the training template.

Free questions have generated answers only. An answer ends with its line: if responses have
explanations, the option is named in the first line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ift_scale.engines.protocol import Engine, Sampling, TextRequest
from ift_scale.prompts.answer_parsing import exact_match, f1, is_refusal, named_option, refuses
from ift_scale.prompts.tokenizer import PromptTokenizer, common_prefix
from ift_scale.records import Question
from ift_scale.scoring import letters
from ift_scale.scoring.letters import LetterAsker
from ift_scale.scoring.scores import ChoiceScores

_IDENTITY = ("domain", "subject", "collection", "split", "group")


@dataclass(frozen=True)
class GeneratedRequests:
    """Requests for a chunk of questions of one kind.

    `lettered`: for choice questions, the letters' requests with the same prompts. `again`: the end
    of each prompt's text that its answer repeats, because it merges with the answer's first letter.
    """

    questions: list[Question]
    lettered: letters.LetterRequests | None
    requests: list[TextRequest]
    again: list[str]
    max_tokens: int

    @property
    def tokens(self) -> int:
        return sum(len(request.suffix) for request in self.requests) + (
            self.lettered.tokens if self.lettered else 0
        )

    @property
    def num_requests(self) -> int:
        return len(self.requests) + (self.lettered.num_requests if self.lettered else 0)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        for question, request in zip(self.questions, self.requests, strict=True):
            yield question, len(request.suffix) + self.max_tokens


class GeneratedAsker:
    """Turns questions into a shard's table.

    For choice questions, the columns are those of the letters plus `response`,
    `generated_prediction` and `refused`. For free questions, they are the question's id and groups,
    `response`, `f1`, `correct` and `refused`.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        template: str,
        lettered: LetterAsker,
        max_tokens: int,
        refusal: str,
    ):
        self.tokenizer, self.template, self.lettered = tokenizer, template, lettered
        self.max_tokens, self.refusal = max_tokens, refusal

    def write(self, questions: list[Question]) -> GeneratedRequests:
        lettered = self.lettered.write(questions) if questions[0].kind == "choice" else None
        whole = self.tokenizer.encode(
            [letters.chat_prompt(self.tokenizer, self.template, q) for q in questions]
        )
        prompted = whole
        if lettered is not None:
            # One view per question, in order.
            assert lettered.source[:, 0].tolist() == list(range(len(questions)))
            prompted = [request.prompt for request in lettered.requests]
        dropped = [
            ids[len(common_prefix([ids, prompt])) :]
            for ids, prompt in zip(whole, prompted, strict=True)
        ]
        again = [self.tokenizer.decode(ids) for ids in dropped]
        return GeneratedRequests(
            questions,
            lettered,
            [TextRequest([], ids, []) for ids in prompted],
            again,
            self.max_tokens,
        )

    def ask(self, engine: Engine, written: GeneratedRequests) -> pa.Table:
        lettered = self.lettered.ask(engine, written.lettered) if written.lettered else None
        tokens = engine.generate(
            written.requests, Sampling(self.max_tokens, self.tokenizer.line_end_tokens)
        )
        responses = [
            self.tokenizer.decode(first).removeprefix(again).strip()
            for (first,), again in zip(tokens, written.again, strict=True)
        ]
        return (
            self._free(written.questions, responses)
            if lettered is None
            else self._choice(lettered, written.questions, responses)
        )

    def _choice(self, table: pa.Table, questions: list[Question], responses: list[str]) -> pa.Table:
        pairs = list(zip(responses, questions, strict=True))
        named = [named_option(text, question.choices) for text, question in pairs]
        refused = [refuses(text, question.choices, self.refusal) for text, question in pairs]
        columns = {
            "response": pa.array(responses, pa.string()),
            "generated_prediction": pa.array(named, pa.int16()),
            "refused": pa.array(refused, pa.bool_()),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def _free(self, questions: list[Question], responses: list[str]) -> pa.Table:
        pairs = list(zip(responses, questions, strict=True))
        columns: dict[str, Any] = {
            name: [getattr(question, name) for question in questions] for name in ("id", *_IDENTITY)
        }
        columns["response"] = responses
        columns["correct"] = [exact_match(text, question.aliases) for text, question in pairs]
        columns["f1"] = [f1(text, question.aliases) for text, question in pairs]
        columns["refused"] = [is_refusal(text, self.refusal) for text in responses]
        types = {"correct": pa.bool_(), "f1": pa.float64(), "refused": pa.bool_()}
        return pa.table(
            {
                name: pa.array(values, types.get(name, pa.string()))
                for name, values in columns.items()
            }
        )


@dataclass
class GeneratedRows:
    """Converts shards' tables to rows of `schema`, and counts over all of them."""

    scores: ChoiceScores
    schema: pa.Schema
    choice: int = 0
    unparsed: int = 0
    refused: int = 0
    free: int = 0
    free_correct: int = 0
    generated_correct: int = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = self._choice(table) if "logprobs" in table.column_names else self._free(table)
        return rows.select(self.schema.names).cast(self.schema)

    def _choice(self, table: pa.Table) -> pa.Table:
        rows = self.scores.rows(table)
        for name in ("response", "generated_prediction", "refused"):
            rows = _put(rows, name, table[name])
        names_none = pc.and_(pc.is_null(table["generated_prediction"]), pc.invert(table["refused"]))
        self.choice += len(table)
        self.unparsed += _count(names_none)
        self.refused += _count(table["refused"])
        self.generated_correct += _count(pc.equal(table["generated_prediction"], table["answer"]))
        return rows

    def _free(self, table: pa.Table) -> pa.Table:
        self.free += len(table)
        self.refused += _count(table["refused"])
        self.free_correct += _count(table["correct"])
        known = {"kind": ["free"] * len(table), "confidence": [float("nan")] * len(table)}
        columns = [
            table["id" if f.name == "question_id" else f.name].cast(f.type)
            if f.name in table.column_names or f.name == "question_id"
            else pa.array(known.get(f.name, [None] * len(table)), f.type)
            for f in self.schema
        ]
        return pa.table(columns, schema=self.schema)

    def counts(self) -> dict[str, float]:
        """Returns the counts for the manifest."""
        counts: dict[str, float] = {
            "free_questions": self.free,
            "refused": self.refused,
            "unparsed": self.unparsed,
        }
        if self.choice:
            counts["generated_accuracy"] = self.generated_correct / self.choice
        if self.free:
            counts["exact_match"] = self.free_correct / self.free
        return counts


def _put(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    index = table.schema.get_field_index(name)
    return (
        table.set_column(index, name, column) if index >= 0 else table.append_column(name, column)
    )


def _count(flags: pa.ChunkedArray) -> int:
    return int(pc.sum(flags).as_py() or 0)
