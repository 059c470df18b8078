"""Reads the instruction data once: kinds, copies, leaks and demonstrations, in flat memory.

Out: a file with one question per example, in the order of the data, for the engines. In memory
remain 17 bytes per example, the demonstrations and the leaks that were found.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ift_scale.config import AuditConfig, Config
from ift_scale.config.instructions import InstructionSource
from ift_scale.instructions.conversation import Conversation
from ift_scale.instructions.read import Skipped, read
from ift_scale.io.files import atomic_path
from ift_scale.io.progress import progress, say
from ift_scale.questions.audit import HeldOut
from ift_scale.questions.audit_result import AuditedQuestion, Cell
from ift_scale.questions.similarity import Normal
from ift_scale.questions.sources import load_source
from ift_scale.records import Question
from ift_scale.screen.asker import TOPIC
from ift_scale.screen.demonstrations import HALVES, Group, GroupDemonstrations, Reservoir
from ift_scale.screen.kinds import Recognised, recognise

_OWN = Cell("own data", "train", "own data")


class Shown(NamedTuple):
    """How many demonstrations of a kind a prompt has, and over how many draws."""

    num_shots: int
    draws: int


@dataclass
class Gathered:
    """The examples: `copy_of` (N,) is the number of the first example with the same prompt.

    `leaks`: by number, the test question that an example asks, in words. `demonstrations`: by kind
    and half.
    """

    path: Path
    copy_of: np.ndarray
    leaks: dict[int, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    demonstrations: dict[Group, GroupDemonstrations] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.copy_of)

    @property
    def num_copies(self) -> int:
        return int((self.copy_of != np.arange(len(self))).sum())


def conversations(
    sources: Sequence[InstructionSource], report: bool = False
) -> Iterator[Conversation]:
    """Yields the conversations of all sources in order; `report` prints a summary of each."""
    for source in sources:
        skipped = Skipped()
        yield from read(source, skipped)
        if report:
            say(skipped.summary(source.path))


def question_of(conversation: Conversation, recognised: Recognised) -> Question:
    """Returns the example as a question whose subject is its kind and whose id is its place."""
    return Question(
        id=str(conversation.place),
        domain=TOPIC,
        subject=recognised.kind,
        collection="pool",
        split="train",
        kind="choice" if recognised.kind == "choice" else "free",
        question=recognised.question,
        choices=recognised.choices,
        answer=recognised.answer,
        aliases=recognised.aliases,
    )


def gather(
    sources: Sequence[InstructionSource], config: Config, with_pools: bool, path: Path
) -> Gathered:
    """Reads all sources and writes one question per example to `path`.

    `with_pools`: search for the test questions of `config.questions`.
    """
    held_out = _held_out(config) if with_pools else None
    probe, long = config.probe, config.screen.long
    draws = probe.reliability.demonstration_draws
    shown = {
        "choice": Shown(probe.num_shots, draws),
        "short": Shown(probe.num_shots, draws),
        "long": Shown(long.num_shots, 1),
    }
    most = max(shots * count for shots, count in shown.values())
    reservoir, digests = Reservoir(max(1, most), config.screen.seed), array("Q")
    gathered = Gathered(path, np.empty(0))
    with (
        progress("reading", None) as bar,
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for number, conversation in enumerate(conversations(sources, report=True)):
            question = question_of(conversation, recognise(conversation.messages))
            file.write(question.model_dump_json(exclude_none=True) + "\n")
            normal = Normal.of(question.question, question.choices)
            digest = normal.digest()
            digests.append(int.from_bytes(digest[:8], "little"))
            gathered.kinds[question.subject] += 1
            gathered.characters[question.subject] += _length(question)
            if question.subject in shown and _may_be_shown(question, long.longest_demonstration):
                reservoir.add(question.subject, question, digest.hex())
            if held_out is not None and (leak := held_out.find(number, question, normal)):
                gathered.leaks[number] = leak
            bar.advance()
    _, first, inverse = np.unique(
        np.frombuffer(digests, np.uint64), return_index=True, return_inverse=True
    )
    gathered.copy_of = first[inverse]
    gathered.demonstrations = {
        (kind, half): GroupDemonstrations(reservoir.shown_to((kind, half)), shown[kind].num_shots)
        for kind in shown
        for half in HALVES
    }
    return gathered


def _length(question: Question) -> int:
    return len(question.question) + sum(map(len, question.choices + question.aliases))


def _may_be_shown(question: Question, longest: int) -> bool:
    """True if a demonstration is short enough for prompts; few choice questions are longer."""
    return _length(question) <= longest


class _TestQuestions:
    """The test questions of the pools and benchmarks, for finding copies among the examples."""

    def __init__(self, config: AuditConfig):
        self._index = HeldOut(config)

    def add(self, number: int, question: Question) -> None:
        cell = Cell(question.collection, question.split, question.domain)
        normal = Normal.of(question.question, question.choices)
        entry = AuditedQuestion(number, question.id, cell, normal)
        self._index.add(entry, self._index.shingles(entry))

    def find(self, number: int, question: Question, normal: Normal) -> str | None:
        """Returns the test question that an example asks, in words, or None."""
        entry = AuditedQuestion(number, question.id, _OWN, normal)
        for other, kind, similarity in self._index.matches(entry, self._index.shingles(entry)):
            _, id, cell = self._index.entries[other]
            about = f", similarity {similarity:.2f}" if kind == "near" else ""
            return f"test question {id} of {cell.label} ({kind}{about})"
        return None


def _held_out(config: Config) -> _TestQuestions:
    index = _TestQuestions(config.questions.audit)
    for source in config.questions.sources:
        for number, (_, question) in enumerate(load_source(source, config.questions.seed)):
            if question.split == "test":
                index.add(number, question)
    return index
