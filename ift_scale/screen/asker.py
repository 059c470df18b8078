"""Asks a block of examples of all kinds, and returns one row of measures per example, in order.

In: questions whose `subject` is the example's kind. Choice questions are asked by letters and
option texts, short ones by greedy and sampled answers, longer ones by `longer`. Everything that is
derived from the measures with thresholds is in `classes`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ift_scale.config import ProbeConfig, ScreenConfig
from ift_scale.engines.protocol import Engine
from ift_scale.probe import free
from ift_scale.probe.free import FreeAsker
from ift_scale.prompts import templates
from ift_scale.prompts.answer_parsing import exact_match, normalise
from ift_scale.prompts.templates import DemonstrationSource
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Question
from ift_scale.scoring.blocks import softmax
from ift_scale.scoring.letters import few_shot_asker
from ift_scale.scoring.scores import ChoiceScores
from ift_scale.screen.demonstrations import HALVES, Group, half_of, prompt_digest
from ift_scale.screen.longer import LongAsker

TOPIC = "various topics"
"""The topic that the few-shot header of choice questions names."""

_TEXTS = pa.list_(pa.string())
_NUMBERS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("too_long", pa.bool_()),
        ("reference_prob", pa.float64()),
        ("other_prob", pa.float64()),
        ("other", pa.string()),
        ("letter_mass", pa.float64()),
        ("prediction", pa.int16()),
        ("probs", _NUMBERS),
        ("cloze_probs", _NUMBERS),
        ("grade", pa.string()),
        ("f1", pa.float64()),
        ("greedy_right", pa.float64()),
        ("sampled_right", pa.float64()),
        ("response", pa.string()),
        ("samples", _TEXTS),
        ("tokens", pa.int32()),
        ("surprisal", pa.float64()),
        ("surprisal_alone", pa.float64()),
        ("difficulty", pa.float64()),
        ("fact_surprisal", pa.float64()),
        ("worst_span", pa.string()),
        ("worst_surprisal", pa.float64()),
        ("agreement", pa.float64()),
        ("consistency", pa.float64()),
        ("facts", pa.int16()),
        ("facts_known", pa.int16()),
        ("facts_contradicted", pa.int16()),
    ]
)
"""The measures of one example; docs/screen.md explains every column. Others are null."""
Measures = dict[str, Any]
FactsOf = Callable[[Question], Sequence[Question]]
"""Returns the choice questions about the facts of a longer answer."""


class KindClock:
    """Engine seconds by kind of example, for an estimate of the whole after the first block."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._asked: Counter[str] = Counter()

    def add(self, block: "BlockRequests", kind: str, seconds: float) -> None:
        """Adds the seconds of one part of a block. Facts belong to the longer answers."""
        owner = "long" if kind == "facts" else kind
        self._seconds[owner] += seconds
        if kind != "facts":
            self._asked[kind] += sum(len(p.rows) for p in block.parts if p.kind == kind)

    def estimate(self, counts: Mapping[str, int]) -> float | None:
        """Returns the seconds for `counts` examples by kind, None before a kind was asked."""
        asked = [kind for kind, count in counts.items() if count and kind != "other"]
        if not all(self._asked[kind] for kind in asked):
            return None
        return sum(self._seconds[kind] / self._asked[kind] * counts[kind] for kind in asked)


@dataclass
class _Part:
    """The examples of one kind and half in a block; `rows` are their numbers in the block."""

    kind: str
    rows: list[int]
    written: Any


@dataclass
class BlockRequests:
    """The engine requests of one block."""

    questions: list[Question]
    parts: list[_Part] = field(default_factory=list)
    too_long: set[int] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        return sum(sum(_lengths(part)) for part in self.parts)

    @property
    def num_requests(self) -> int:
        """Requests to the engine; those for longer answers are about five per example."""
        return sum(
            5 * len(part.rows) if part.kind == "long" else part.written.num_requests
            for part in self.parts
        )

    def lengths(self) -> Iterator[tuple[Question, int]]:
        """Yields (question, most prompt tokens) for every example that is asked."""
        for part in self.parts:
            for row, tokens in zip(part.rows, _lengths(part), strict=True):
                yield self.questions[row], tokens


def _lengths(part: _Part) -> list[int]:
    """Returns the tokens of the longest request of each example."""
    if part.kind == "long":
        lengths: list[int] = part.written.lengths()
        return lengths
    number = {id(question): n for n, question in enumerate(part.written.questions)}
    most = [0] * len(number)
    for question, tokens in part.written.lengths():
        n = number[id(question)]
        most[n] = max(most[n], tokens)
    return most


class BlockAsker:
    """Turns blocks of examples into engine requests (`write`) and these into rows (`ask`).

    `shown`: the demonstrations of each kind and half. `context`: the most tokens of a prompt;
    examples with longer ones are not asked. `facts_of`: see `FactsOf`. `after_block` is called with
    the clock after each block.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        shown: Mapping[Group, DemonstrationSource],
        probe: ProbeConfig,
        config: ScreenConfig,
        context: int,
        facts_of: FactsOf | None = None,
    ):
        self.probe, self.config, self.context, self.facts_of = probe, config, context, facts_of
        self.clock = KindClock()
        self.after_block: Callable[[KindClock], None] = lambda clock: None
        self._askers: dict[Group, Any] = {}
        for half in HALVES:
            choice = shown["choice", half]
            self._askers["choice", half] = few_shot_asker(tokenizer, choice, probe)
            self._askers["facts", half] = few_shot_asker(tokenizer, choice, probe, cloze=False)
            self._askers["short", half] = FreeAsker(tokenizer, shown["short", half], probe)
            self._askers["long", half] = LongAsker(
                tokenizer, shown["long", half], probe, config.long, config.seed
            )

    def write(self, questions: list[Question]) -> BlockRequests:
        block = BlockRequests(questions)
        groups: dict[Group, list[int]] = {}
        facts: dict[int, list[tuple[int, Question]]] = {}
        for row, question in enumerate(questions):
            if question.subject == "other":
                continue
            half = half_of(prompt_digest(question))
            groups.setdefault((question.subject, half), []).append(row)
            if question.subject == "long" and self.facts_of is not None:
                facts.setdefault(half, []).extend((row, q) for q in self.facts_of(question))
        for group, rows in sorted(groups.items()):
            self._add(block, group, rows, [questions[row] for row in rows])
        for half, owned in sorted(facts.items()):
            self._add(block, ("facts", half), [row for row, _ in owned], [q for _, q in owned])
        return block

    def _add(
        self, block: BlockRequests, group: Group, rows: list[int], asked: list[Question]
    ) -> None:
        """Adds a group's requests, without examples that are longer than the context."""
        part = _Part(group[0], rows, self._askers[group].write(asked))
        fits = [tokens <= self.context for tokens in _lengths(part)]
        if not all(fits):
            if part.kind != "facts":
                block.too_long |= {row for row, fit in zip(rows, fits, strict=True) if not fit}
            rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
            asked = [question for question, fit in zip(asked, fits, strict=True) if fit]
            if not rows:
                return
            part = _Part(group[0], rows, self._askers[group].write(asked))
        block.parts.append(part)

    def ask(self, engine: Engine, block: BlockRequests) -> pa.Table:
        """Returns one row of SCHEMA per example of the block."""
        rows: list[Measures] = [{"kind": q.subject, "too_long": False} for q in block.questions]
        for row in block.too_long:
            rows[row]["too_long"] = True
        for part in block.parts:
            half = half_of(prompt_digest(block.questions[part.rows[0]]))
            asker, started = self._askers[part.kind, half], time.monotonic()
            found = asker.ask(engine, part.written)
            self.clock.add(block, part.kind, time.monotonic() - started)
            if part.kind == "facts":
                self._add_facts(rows, part.rows, found)
                continue
            if part.kind == "choice":
                found = self._choice(found, part.written.questions)
            elif part.kind == "short":
                found = _short(found)
            for row, measures in zip(part.rows, found, strict=True):
                rows[row] |= measures
        self.after_block(self.clock)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _choice(self, table: pa.Table, questions: Sequence[Question]) -> list[Measures]:
        """Returns the measures of choice questions from their raw log-probabilities."""
        rows = []
        for scored, question in zip(self._scores(table), questions, strict=True):
            probs, answer = np.array(scored["probs"]), question.answer
            assert answer is not None
            others = probs.copy()
            others[answer] = 0.0
            other = int(others.argmax())
            cloze = scored["cloze_logprobs"]
            rows.append(
                {
                    "reference_prob": float(probs[answer]),
                    "other_prob": float(others[other]),
                    "other": templates.response_text(question, other, "letter_text"),
                    "letter_mass": scored["letter_mass"],
                    "prediction": scored["prediction"],
                    "probs": scored["probs"],
                    "cloze_probs": None if cloze is None else softmax(np.array(cloze)).tolist(),
                }
            )
        return rows

    def _scores(self, table: pa.Table) -> list[dict[str, Any]]:
        reliability = self.probe.reliability
        if "cloze" not in table.column_names:  # facts
            change = {"cloze": False, "decide_by": "plain"}
            reliability = reliability.model_copy(update=change)
        rows: list[dict[str, Any]] = ChoiceScores(reliability).rows(table).to_pylist()
        return rows

    def _add_facts(self, rows: list[Measures], owners: Sequence[int], table: pa.Table) -> None:
        """Counts the facts that the model knows and contradicts, by example."""
        names = ("facts", "facts_known", "facts_contradicted")
        for owner, scored in zip(owners, self._scores(table), strict=True):
            sure = scored["confidence"] > self.config.confidence_threshold
            counted = (True, sure and scored["correct"], sure and not scored["correct"])
            for name, count in zip(names, counted, strict=True):
                rows[owner][name] = rows[owner].get(name, 0) + int(count)


def _short(table: pa.Table) -> list[Measures]:
    """Returns the measures of short answers.

    `reference_prob` is the share of all answers, greedy and sampled, that equal the reference;
    `other_prob` that of the most frequent other answer.
    """
    answers = [
        (row["greedy"] + row["samples"], row["aliases"])
        for row in table.select(["greedy", "samples", "aliases"]).to_pylist()
    ]
    found = []
    for scored, (texts, aliases) in zip(free.rows(table).to_pylist(), answers, strict=True):
        right = [exact_match(text, aliases) for text in texts]
        others: dict[str, list[str]] = {}
        for text, is_right in zip(texts, right, strict=True):
            if not is_right and normalise(text):
                others.setdefault(normalise(text), []).append(text)
        most = max(others.values(), key=len, default=[])
        kept = ("grade", "f1", "greedy_right", "sampled_right", "response", "samples")
        found.append(
            {
                "reference_prob": float(np.mean(right)),
                "other_prob": len(most) / len(texts),
                "other": most[0] if most else None,
                **{name: scored[name] for name in kept},
            }
        )
    return found
