"""Targets: results that are computed chunk by chunk, and how their questions are asked."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ift_scale.engines.protocol import Engine
from ift_scale.records import Question
from ift_scale.scoring.shards import Shards, open_shard

META = b"ift_scale"
"""The key of a shard's schema metadata with its token counts and seconds."""


class ChunkRequests(Protocol):
    """The engine requests of one chunk of questions."""

    questions: list[Question]

    @property
    def tokens(self) -> int:
        """Prompt tokens; a shared prefix counts once per prompt."""

    @property
    def num_requests(self) -> int:
        """Requests to the engine; a request that is sent twice counts twice."""

    def lengths(self) -> Iterator[tuple[Question, int]]:
        """Yields (question, prompt tokens) for every request."""


class Asker(Protocol):
    """Asks questions in two steps: `write` runs ahead on the CPU, `ask` needs the engine."""

    def write(self, questions: list[Question]) -> Any: ...

    def ask(self, engine: Engine, written: Any) -> pa.Table: ...


@dataclass
class Target:
    """One result to compute: the questions, how to ask them, the weights, and what to do last.

    `parts` are row numbers of the question file; no chunk spans two parts. `finish` receives the
    shards in order once all exist.
    """

    name: str
    folder: Path
    key: str
    """Digest of everything the shards depend on."""
    parts: Sequence[np.ndarray]
    asker: Asker
    model_path: Path
    finish: Callable[["Target", list[Path]], None]
    chunk_size: int
    is_done: Callable[[], bool]
    """True once the merged result exists; polled often by processes that do not merge."""
    computed_before: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._is_finished = False
        self.shards = Shards(self.folder, self.key, self.chunk_size)
        size = self.chunk_size
        self.chunks = [
            part[start : start + size] for part in self.parts for start in range(0, len(part), size)
        ]
        self.num_questions = sum(map(len, self.parts))

    def is_finished(self) -> bool:
        """`is_done`, not called again once it was true."""
        self._is_finished = self._is_finished or self.is_done()
        return self._is_finished


Unit = tuple[Target, int]


@dataclass
class Work:
    """Work computed in this call, without shards that existed before. Seconds are engine time."""

    questions: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"engine_start": 0.0, "load_weights": 0.0, "scoring": 0.0}
    )


def work_of(target: Target) -> Work:
    """Sums up the metadata of the target's shards that were computed in this call."""
    work = Work()
    for number, chunk in enumerate(target.chunks):
        if number not in target.computed_before:
            with open_shard(target.shards.path(number)) as shard:
                meta = json.loads(shard.metadata.metadata[META])
                work.tokens += meta["tokens"]
                for name in work.seconds:
                    work.seconds[name] += meta[name]
            work.questions += len(chunk)
    return work
