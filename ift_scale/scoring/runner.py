"""The scoring core of probing and evaluation: chunks of questions become shards, merged in order.

A *target* is one result (the probe, or one arm's evaluation). Its chunks depend only on its
questions and the chunk size. Every engine of every rank starts at its own share of the chunks and
then helps with the others. A shard is a pure function of its chunk and the weights, because an
engine drops its cache before each chunk. The merged result is therefore the same for any number of
engines. While an engine works on one chunk, the next one is read, rendered and tokenised.
"""

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import numpy as np

from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineDied, EngineProcess
from ift_scale.errors import DataError, Place
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.environment import Ranks
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.target import META, ChunkRequests, Target, Unit

_LENGTHS_CHECKED_FIRST = 32
_POLL_SECONDS = 0.1
_RESCAN_SECONDS = 2.0
_MAX_RESTARTS = 2
# A chunk consists of many thousand small lists without reference cycles. Searching for cycles after
# every 700 objects took 40% of the time.
_OBJECTS_BETWEEN_COLLECTIONS = 1_000_000


@dataclass(frozen=True)
class Share:
    """This process's share of the engines' work. Rank 0 merges the shards."""

    rank: int = 0
    world_size: int = 1
    watch: Callable[[], None] | None = None
    """Called often during the work; raises to end it."""

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0


def share_of(ranks: Ranks | None) -> Share:
    """Returns the share of this rank, or the whole work without ranks."""
    return Share(ranks.rank, ranks.world_size, ranks.watch) if ranks else Share()


def compute(
    questions: QuestionFile,
    targets: Sequence[Target],
    workers: Sequence[EngineWorker],
    share: Share,
    bar: Bar,
) -> None:
    """Computes all targets and, on rank 0, merges and finishes them.

    Other ranks return when all targets are finished or no work is left. Raises the first error of a
    worker.
    """
    for target in targets:
        _start(target, share)
    run = _Run(questions, targets, bar)
    thresholds = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *thresholds[1:])
    threads = [
        threading.Thread(
            target=run.work,
            args=(worker, share.rank * len(workers) + number, share.world_size * len(workers)),
            daemon=True,
        )
        for number, worker in enumerate(workers)
    ]
    try:
        for thread in threads:
            thread.start()
        _follow(run, threads, targets, share, bar)
    except BaseException:
        run.stopping.set()
        for worker in workers:
            worker.kill()
        raise
    finally:
        gc.set_threshold(*thresholds)
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()


def _start(target: Target, share: Share) -> None:
    """Records the target's existing shards; rank 0 removes those of other questions or settings."""
    removed = target.shards.remove_stale() if share.is_rank_zero else 0
    if removed:
        say(f"{target.name}: removed {removed} shards of other questions or settings")
    target.computed_before = target.shards.present()


def _follow(
    run: "_Run",
    threads: Sequence[threading.Thread],
    targets: Sequence[Target],
    share: Share,
    bar: Bar,
) -> None:
    """Watches for shards and finishes complete targets; raises the first error of a worker."""
    progress = _Progress(targets, share.is_rank_zero)
    scanned, worked = 0.0, True
    while progress.pending:
        working = any(thread.is_alive() for thread in threads)
        run.progressed.wait(_POLL_SECONDS)
        run.progressed.clear()
        if run.errors:
            raise run.errors[0]
        if share.watch is not None:
            share.watch()
        # Rescan the targets this process worked on. Every few seconds, and when its own work ends,
        # rescan all of them, because other processes write shards too.
        touched = run.pop_touched() & set(progress.pending)
        if time.monotonic() - scanned > _RESCAN_SECONDS or (worked and not working):
            touched, scanned = set(progress.pending), time.monotonic()
        worked = working
        for name in sorted(touched):
            progress.scan(progress.pending[name])
        bar.advance(progress.num_counted + run.num_answered(progress.open_shards()) - bar.done)
        if not working and not share.is_rank_zero:
            return


class _Progress:
    """The open targets, and the shards and questions counted so far."""

    def __init__(self, targets: Sequence[Target], merges: bool):
        self.pending = {target.name: target for target in targets}
        self._merges = merges
        self._counted: dict[str, int] = {}
        self._shards: dict[str, set[int]] = {}

    def scan(self, target: Target) -> None:
        """Counts a target's shards; if it is complete, finishes it on the rank that merges."""
        present = self._shards[target.name] = target.shards.present()
        self._counted[target.name] = sum(len(target.chunks[number]) for number in present)
        if self._merges and len(present) == len(target.chunks):
            target.finish(target, [target.shards.path(n) for n in range(len(target.chunks))])
            target.shards.remove()
        elif self._merges or not target.is_finished():
            return
        self._counted[target.name] = target.num_questions
        del self.pending[target.name]

    @property
    def num_counted(self) -> int:
        """Questions in the shards seen so far, of finished targets all."""
        return sum(self._counted.values())

    def open_shards(self) -> dict[str, set[int]]:
        """Returns the chunks already counted of each open target."""
        return {name: self._shards.get(name, set()) for name in self.pending}


class _Run:
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
                    time.sleep(_POLL_SECONDS)
        except BaseException as error:
            self.errors.append(error)
        finally:
            worker.close()  # an engine ends with the thread that created it
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
                while (ready := upcoming.result()) is not None:
                    upcoming = ahead.submit(self._prepare, coming)
                    with ready.claim:
                        self._compute(worker, ready)
                    self._touched.add(ready.target.name)
                    self.progressed.set()
                    computed = True
            finally:
                upcoming.add_done_callback(_release_claim)  # release a claim that was not computed
        return computed

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
