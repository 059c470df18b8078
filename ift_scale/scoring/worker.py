"""Worker threads of the scoring runner: each one claims chunks, computes them, and writes shards.

A worker starts at its own share of the chunks. While its engine computes one, an extra thread reads
the next free chunk, writes its prompts and tokenises them.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import numpy as np

from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineDied, EngineHangs, EngineProcess
from ift_scale.errors import DataError, Place
from ift_scale.io.progress import Bar, say
from ift_scale.ranks import activity
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.target import META, ChunkRequests, Target, Unit

_LENGTHS_CHECKED_FIRST = 32
_POLL_SECONDS = 0.1
_MAX_RESTARTS = 2


class ChunkWork:
    """State shared by the worker threads of one `compute` call."""

    def __init__(self, questions: QuestionFile, targets: Sequence[Target], bar: Bar):
        self.questions, self.bar = questions, bar
        self.units: list[Unit] = [
            (target, number) for target in targets for number in range(len(target.chunks))
        ]
        self.stopping, self.progressed = threading.Event(), threading.Event()
        self.errors: list[BaseException] = []
        self._checked: set[str] = set()
        self._touched: set[str] = set()
        self._answered: dict[tuple[str, int], float] = {}

    def num_answered(self, shards: dict[str, set[int]]) -> int:
        """Returns how many questions were answered in chunks whose shard is not yet counted.

        `shards` gives the chunks already counted for each open target. A chunk stays in this number
        until its shard is seen, so the progress bar neither drops nor counts it twice.
        """
        return sum(
            int(count)
            for (name, number), count in list(self._answered.items())
            if number not in shards.get(name, {number})
        )

    def _counter_for(self, ready: "_PreparedChunk") -> Callable[[float], None]:
        """Returns a callback that adds up finished requests, starting at 0 for each attempt."""
        unit, num_questions = (ready.target.name, ready.number), len(ready.written.questions)
        share = num_questions / max(1, ready.written.num_requests)
        self._answered[unit] = 0.0

        def finished(count: float) -> None:
            activity.advance()
            self._answered[unit] = min(self._answered[unit] + count * share, num_questions)
            self.progressed.set()

        return finished

    def pop_touched(self) -> set[str]:
        """Returns and clears the names of the targets that got shards since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def work(self, worker: EngineWorker, worker_number: int, num_workers: int) -> None:
        """Runs one engine's thread: its own share first, then whatever is left of all targets."""
        # Each worker starts at another position, so they meet late and rarely compete for claims.
        first = len(self.units) * worker_number // num_workers
        order = [*self.units[first:], *self.units[:first]]
        try:
            # Repeat until nothing is left: a chunk claimed elsewhere is free again if its owner
            # dies.
            while not self.stopping.is_set() and (
                left := [u for u in order if not self._is_computed(u)]
            ):
                if not self._work_through(worker, left):
                    activity.alone("waiting for the chunks of other ranks", waits=True)
                    time.sleep(_POLL_SECONDS)
        except BaseException as error:
            self.errors.append(error)
        finally:
            worker.close()  # frees its memory while other engines work
            self.progressed.set()

    def _is_computed(self, unit: Unit) -> bool:
        return unit[0].shards.path(unit[1]).is_file() or unit[0].is_finished()

    def _work_through(self, worker: EngineWorker, units: Sequence[Unit]) -> bool:
        """Goes through the units once; returns True if any was computed.

        One extra thread prepares the next unit's prompts while the engine computes.
        """
        computed = False
        coming = iter(units)
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self._prepare, coming)
            try:
                while (ready := self._next(upcoming)) is not None:
                    upcoming = ahead.submit(self._prepare, coming)
                    with ready.claim:
                        self._compute(worker, ready)
                    self._touched.add(ready.target.name)
                    self.progressed.set()
                    computed = True
            finally:
                upcoming.add_done_callback(_release_claim)  # release a claim that was not computed
        return computed

    def _next(self, upcoming: "Future[_PreparedChunk | None]") -> "_PreparedChunk | None":
        """Waits for a prepared chunk; None if there is none left."""
        if not activity.current.waits:
            activity.alone(
                "reading and tokenising a chunk", "the file system with the run's folder"
            )
        ready = upcoming.result()
        if ready is not None:
            chunk = f"chunk {ready.number + 1} of {len(ready.target.chunks)} of {ready.target.name}"
            activity.alone(f"computing {chunk}", "its engine's log and device")
            activity.advance()
        return ready

    def _prepare(self, units: Iterator[Unit]) -> "_PreparedChunk | None":
        """Claims the next free unit and writes its prompts; None if there is none left."""
        for target, number in units:
            if self.stopping.is_set():
                return None
            claim = None if target.is_finished() else target.shards.claim(number)
            # Check again: the target may have been merged between the check and the claim.
            if claim is not None and not target.is_finished():
                return _PreparedChunk(
                    target,
                    number,
                    claim,
                    target.asker.write(self.questions.read(target.chunks[number])),
                )
        return None

    def _compute(self, worker: EngineWorker, ready: "_PreparedChunk") -> None:
        """Computes one chunk and writes its shard, restarting a dead engine up to twice."""
        for deaths in range(_MAX_RESTARTS + 1):
            try:
                engine = worker.load(ready.target.model_path)
                self._check_lengths(engine, ready)
                engine.reset_cache()  # the shard must not depend on earlier chunks
                engine.finished = self._counter_for(ready)
                started = time.monotonic()
                table = ready.target.asker.ask(engine, ready.written)
                break
            except EngineHangs as error:
                raise _in_chunk(error, ready) from None
            except EngineDied as error:
                worker.close()
                if self.stopping.is_set() or deaths == _MAX_RESTARTS:
                    raise
                reason = str(error).splitlines()[0]
                say(f"{reason}; starting a new one, which resumes with shard {ready.number}")
        meta = {
            "tokens": ready.written.tokens,
            "scoring": time.monotonic() - started,
        } | worker.pop_seconds()
        ready.target.shards.write(
            ready.number, table.replace_schema_metadata({META: json.dumps(meta)})
        )

    def _check_lengths(self, engine: EngineProcess, ready: "_PreparedChunk") -> None:
        """Checks prompt lengths; on a target's first chunk, also those of its longest questions.

        A prompt that is too long then fails at once and not after hours.
        """
        target = ready.target
        if target.name not in self._checked:
            self._checked.add(target.name)
            for part in (part for part in target.parts if len(part)):
                longest = part[
                    np.argsort(-self.questions.lengths[part], kind="stable")[
                        :_LENGTHS_CHECKED_FIRST
                    ]
                ]
                check_lengths(
                    target.asker.write(self.questions.read(longest)), engine.context_length
                )
        check_lengths(ready.written, engine.context_length)


def _in_chunk(error: EngineHangs, ready: "_PreparedChunk") -> EngineHangs:
    """Returns the error with the chunk in which the engine hung."""
    target, asked = ready.target, ready.written.questions
    which = f"{target.name}, chunk {ready.number + 1} of {len(target.chunks)}"
    ids = f"questions {asked[0].id} to {asked[-1].id}"
    kept = "Finished chunks are kept; the same command resumes with this one"
    return EngineHangs(f"{which} ({ids}): {error}\n{kept}.")


def _release_claim(upcoming: "Future[_PreparedChunk | None]") -> None:
    """Releases the claim of a chunk that was prepared and will not be computed."""
    if (
        not upcoming.cancelled()
        and upcoming.exception() is None
        and (ready := upcoming.result()) is not None
    ):
        ready.claim.close()


@dataclass(frozen=True)
class _PreparedChunk:
    """A claimed chunk with its engine requests."""

    target: Target
    number: int
    claim: IO[str]
    written: ChunkRequests


def check_lengths(written: ChunkRequests, context_length: int) -> None:
    """Raises DataError for a question whose prompt exceeds the model's context."""
    for question, tokens in written.lengths():
        if tokens > context_length:
            raise DataError(
                Place(f"question {question.id}"),
                f"its prompt has {tokens} tokens, but the model's context has {context_length}",
                "Lower probe.num_shots, remove the question, or choose a model with a longer"
                " context",
            )
