"""Free questions: short answers, generated greedily and by sampling, compared with the aliases."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ift_scale.config.engines import ProbeConfig
from ift_scale.engines.protocol import Engine, Sampling, TextRequest
from ift_scale.prompts import templates
from ift_scale.prompts.answer_parsing import exact_match, f1, normalise
from ift_scale.prompts.prefixes import Prefixes
from ift_scale.prompts.templates import DemonstrationSource
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import GRADES, Question
from ift_scale.scoring.grades import grade_of
from ift_scale.scoring.scores import SCHEMA


@dataclass(frozen=True)
class FreeRequests:
    """A chunk of free questions as requests: all questions with draw 0, then all with draw 1."""

    questions: list[Question]
    requests: list[TextRequest]
    max_tokens: int

    @property
    def tokens(self) -> int:
        return sum(len(request.prefix) + len(request.suffix) for request in self.requests)

    @property
    def num_requests(self) -> int:
        """One request per prompt for the greedy answer and one for the samples."""
        return 2 * len(self.requests)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        for number, request in enumerate(self.requests):
            yield (
                self.questions[number % len(self.questions)],
                len(request.prefix) + len(request.suffix) + self.max_tokens,
            )


class FreeAsker:
    """Generates greedy and sampled answers to free questions over all demonstration draws."""

    def __init__(
        self, tokenizer: PromptTokenizer, demonstrations: DemonstrationSource, config: ProbeConfig
    ):
        self.tokenizer = tokenizer
        self.prefixes = Prefixes(
            tokenizer, demonstrations, templates.open_prefix, config.whole_prompts
        )
        self.free, self.reliability = config.free, config.reliability

    def write(self, questions: list[Question]) -> FreeRequests:
        draws = range(self.reliability.demonstration_draws)
        requests = [self._request(question, draw) for draw in draws for question in questions]
        return FreeRequests(questions, requests, self.free.max_tokens)

    def _request(self, question: Question, draw: int) -> TextRequest:
        ((before, behind),) = self.prefixes.encode(question, draw, [templates.open_text(question)])
        return TextRequest(before, behind, [])

    def ask(self, engine: Engine, written: FreeRequests) -> pa.Table:
        """Returns one row per question: a greedy answer per draw, and the samples draw by draw."""
        stop = self.tokenizer.line_end_tokens
        greedy = engine.generate(written.requests, Sampling(self.free.max_tokens, stop))
        sampling = Sampling(
            self.free.max_tokens,
            stop,
            self.free.temperature,
            self.free.top_p,
            self.free.num_samples,
            self.reliability.seed,
        )
        sampled = engine.generate(written.requests, sampling)
        count = len(written.questions)
        columns: dict[str, list[Any]] = {
            name: [getattr(question, name) for question in written.questions]
            for name in ("id", "domain", "subject", "collection", "split", "group", "aliases")
        }
        columns["greedy"] = [
            [self._text(tokens[0]) for tokens in greedy[i::count]] for i in range(count)
        ]
        columns["samples"] = [
            [self._text(sample) for tokens in sampled[i::count] for sample in tokens]
            for i in range(count)
        ]
        return pa.table(columns)

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens).strip()


@dataclass
class FreeSummary:
    """Statistics of all free questions for the report, accumulated chunk by chunk."""

    questions: int = 0
    exact: float = 0
    f1: float = 0
    grades: Counter[str] = field(default_factory=Counter)

    def add(self, scores: pa.Table) -> None:
        self.questions += len(scores)
        self.exact += pc.sum(scores["correct"]).as_py()
        self.f1 += pc.sum(scores["f1"]).as_py()
        self.grades.update(scores["grade"].to_pylist())

    def as_json(self) -> dict[str, Any]:
        """Returns the statistics, or an empty dict if no free question was asked."""
        if not self.questions:
            return {}
        grades = {grade: self.grades[grade] for grade in GRADES}
        means = {"exact_match": self.exact / self.questions, "f1": self.f1 / self.questions}
        return {"free": {"questions": self.questions, **means, "grades": grades}}


def rows(table: pa.Table) -> pa.Table:
    """Returns the scores of free questions in SCHEMA. Every question gets a grade."""
    out: dict[str, list[Any]] = {field.name: [None] * len(table) for field in SCHEMA}
    for name in ("domain", "subject", "collection", "split", "group", "samples"):
        out[name] = table[name].to_pylist()
    out["kind"], out["question_id"] = ["free"] * len(table), table["id"].to_pylist()
    for row, answers in enumerate(table.select(["aliases", "greedy", "samples"]).to_pylist()):
        response, aliases = answers["greedy"][0], answers["aliases"]
        greedy_right = np.mean([exact_match(text, aliases) for text in answers["greedy"]])
        sampled_right = np.mean([exact_match(text, aliases) for text in answers["samples"]])
        out["response"][row], out["f1"][row] = response, f1(response, aliases)
        out["correct"][row] = exact_match(response, aliases)
        answer = normalise(response)  # an empty answer shows no knowledge, however often it occurs
        out["confidence"][row] = (
            float(np.mean([normalise(text) == answer for text in answers["samples"]]))
            if answer
            else 0.0
        )
        out["greedy_right"][row], out["sampled_right"][row] = (
            float(greedy_right),
            float(sampled_right),
        )
        out["grade"][row] = GRADES[int(grade_of(greedy_right, sampled_right))]
    return pa.table([pa.array(out[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
