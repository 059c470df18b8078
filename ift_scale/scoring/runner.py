"""The scoring core that probing and evaluation share: chunks of questions through engines, a shard a chunk, merged in order.

A *target* is one result (the probe, or one arm's evaluation). Its chunks are fixed by its questions and the chunk size alone. Every
engine of every rank starts at its own share of the chunks and then helps with the others'; a shard is a pure function of its chunk
and the weights (an engine forgets its cache before each), so the merged result is the same whoever computed what. While an engine
works on a chunk, the next one is already being read, written as prompts and tokenised.
"""

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.engines.pool import Slot
from ift_scale.engines.process import EngineDied, EngineProcess
from ift_scale.engines.protocol import Engine
from ift_scale.errors import DataError, Place
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.environment import Ranks
from ift_scale.records import Question
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.shards import Shards

_LENGTHS_CHECKED_FIRST = 32
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 2.0
_STARTS_AGAIN = 2
_META = b"ift_scale"
# A chunk is many thousand small lists, none of them in a cycle; looking for cycles after each 700 took 40% of the time.
_OBJECTS_BETWEEN_COLLECTIONS = 1_000_000


class Written(Protocol):
    """A chunk made ready for the engine."""

    questions: list[Question]

    @property
    def tokens(self) -> int:
        """Prompt tokens, those of shared prefixes counted for each prompt."""

    @property
    def num_requests(self) -> int:
        """Requests to the engine, those that are asked twice counted twice."""

    def lengths(self) -> Iterator[tuple[Question, int]]:
        """(question, prompt tokens) of every request."""


class Asker(Protocol):
    """How questions are asked: what can be done without the engine, and what cannot."""

    def write(self, questions: list[Question]) -> Any: ...

    def ask(self, engine: Engine, written: Any) -> pa.Table: ...


@dataclass
class Target:
    """One result to compute: which rows of the question file (no chunk holds rows of two parts), asked how, of which weights, and
    what then to do with its shards."""

    name: str
    folder: Path
    key: str
    """Digest of what the shards depend on."""
    parts: Sequence[np.ndarray]
    asker: Asker
    model_path: Path
    finish: Callable[["Target", list[Path]], None]
    chunk_size: int
    is_done: Callable[[], bool]
    """Whether the result stands, told by whoever merges; asked often."""
    computed_before: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._stands = False
        self.shards = Shards(self.folder, self.key, self.chunk_size)
        size = self.chunk_size
        self.chunks = [
            part[start : start + size] for part in self.parts for start in range(0, len(part), size)
        ]
        self.num_questions = sum(map(len, self.parts))

    def stands(self) -> bool:
        """`is_done`, not asked again once it was so."""
        self._stands = self._stands or self.is_done()
        return self._stands


Unit = tuple[Target, int]


@dataclass
class Work:
    """What was computed in this call; shards that were there already count nothing. Seconds are those of engines."""

    questions: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"engine_start": 0.0, "load_weights": 0.0, "scoring": 0.0}
    )


def work_of(target: Target) -> Work:
    work = Work()
    for number, chunk in enumerate(target.chunks):
        if number not in target.computed_before:
            meta = json.loads(pq.read_metadata(target.shards.path(number)).metadata[_META])
            work.questions += len(chunk)
            work.tokens += meta["tokens"]
            for name in work.seconds:
                work.seconds[name] += meta[name]
    return work


@dataclass(frozen=True)
class Share:
    """Which part of all engines' work this process' engines begin with, and whether it merges (one process does)."""

    rank: int = 0
    world_size: int = 1
    watch: Callable[[], None] | None = None
    """Called often while the work goes on; raises where it shall end."""

    @property
    def leader(self) -> bool:
        return self.rank == 0


def share_of(ranks: Ranks | None) -> Share:
    return Share(ranks.rank, ranks.world_size, ranks.watch) if ranks else Share()


def compute(
    questions: QuestionFile,
    targets: Sequence[Target],
    slots: Sequence[Slot],
    share: Share,
    bar: Bar,
) -> None:
    """Compute and finish all targets. Returns when all are finished, or, where others merge, when nothing is left to do."""
    for target in targets:
        dropped = target.shards.drop_others() if share.leader else 0
        if dropped:
            say(f"{target.name}: {dropped} shards of other questions or settings were dropped")
        target.computed_before = target.shards.present()
    run = _Run(questions, targets, bar)
    thresholds = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *thresholds[1:])
    threads = [
        threading.Thread(
            target=run.work,
            args=(slot, share.rank * len(slots) + number, share.world_size * len(slots)),
            daemon=True,
        )
        for number, slot in enumerate(slots)
    ]
    try:
        for thread in threads:
            thread.start()
        _follow(run, threads, targets, share, bar)
    except BaseException:
        run.stopping.set()
        for slot in slots:
            slot.kill()
        raise
    finally:
        gc.set_threshold(*thresholds)
        for thread in threads:
            thread.join()
        for slot in slots:
            slot.close()


def _follow(
    run: "_Run",
    threads: Sequence[threading.Thread],
    targets: Sequence[Target],
    share: Share,
    bar: Bar,
) -> None:
    """Watch the shards come, finish what is complete; raises the first error of a worker."""
    pending = {target.name: target for target in targets}
    known: dict[str, int] = {}
    shards: dict[str, set[int]] = {}
    looked, worked = 0.0, True
    while pending:
        working = any(thread.is_alive() for thread in threads)
        run.progressed.wait(_POLL_SECONDS)
        run.progressed.clear()
        if run.errors:
            raise run.errors[0]
        if share.watch is not None:
            share.watch()
        # What this process has worked on; now and then, and when it has no more work, all: others work too.
        touched = run.taken_touched() & set(pending)
        if time.monotonic() - looked > _LOOK_SECONDS or (worked and not working):
            touched, looked = set(pending), time.monotonic()
        worked = working
        for name in sorted(touched):
            target = pending[name]
            present = shards[name] = target.shards.present()
            known[name] = sum(len(target.chunks[number]) for number in present)
            if share.leader and len(present) == len(target.chunks):
                target.finish(
                    target, [target.shards.path(number) for number in range(len(target.chunks))]
                )
                target.shards.drop()
            elif share.leader or not target.stands():
                continue
            known[name] = target.num_questions
            del pending[name]
        bar.advance(
            sum(known.values())
            + run.asked({name: shards.get(name, set()) for name in pending})
            - bar.done
        )
        if not working and not share.leader:
            return


class _Run:
    """What the worker threads of one call share."""

    def __init__(self, questions: QuestionFile, targets: Sequence[Target], bar: Bar):
        self.questions, self.bar = questions, bar
        self.units: list[Unit] = [
            (target, number) for target in targets for number in range(len(target.chunks))
        ]
        self.stopping, self.progressed = threading.Event(), threading.Event()
        self.errors: list[BaseException] = []
        self._checked: set[str] = set()
        self._touched: set[str] = set()
        self._asked: dict[tuple[str, int], float] = {}

    def asked(self, shards: dict[str, set[int]]) -> int:
        """Questions that this process' engines have answered in chunks without a shard yet.

        `shards`: for each target that is still open the chunks that are counted already. A chunk
        stays in the count until its shard is seen, so that the sum neither drops nor counts it twice.
        """
        return sum(
            int(count)
            for (name, number), count in list(self._asked.items())
            if number not in shards.get(name, {number})
        )

    def _count_of(self, ready: "_Ready") -> Callable[[float], None]:
        """Takes the number of requests that an engine has just finished, from 0 for each attempt."""
        unit, num_questions = (ready.target.name, ready.number), len(ready.written.questions)
        share = num_questions / max(1, ready.written.num_requests)
        self._asked[unit] = 0.0

        def finished(count: float) -> None:
            self._asked[unit] = min(self._asked[unit] + count * share, num_questions)
            self.progressed.set()

        return finished

    def taken_touched(self) -> set[str]:
        """Names of the targets that got shards since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def work(self, slot: Slot, place: int, places: int) -> None:
        """One engine's thread: its own share first, then whatever is left, until every shard is there."""
        first = len(self.units) * place // places
        order = [*self.units[first:], *self.units[:first]]
        try:
            # A chunk that another holds now may come free: its holder may die.
            while not self.stopping.is_set() and (
                left := [u for u in order if not self._stands(u)]
            ):
                if not self._pass(slot, left):
                    time.sleep(_POLL_SECONDS)
        except BaseException as error:
            self.errors.append(error)
        finally:
            slot.close()  # by this thread, with which the engine would be killed
            self.progressed.set()

    def _stands(self, unit: Unit) -> bool:
        return unit[0].shards.path(unit[1]).is_file() or unit[0].stands()

    def _pass(self, slot: Slot, units: Sequence[Unit]) -> bool:
        """Go through the units once, the next one's prompts being written while the engine has one; whether any was computed."""
        computed = False
        coming = iter(units)
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self._prepare, coming)
            try:
                while (ready := upcoming.result()) is not None:
                    upcoming = ahead.submit(self._prepare, coming)
                    with ready.claim:
                        self._compute(slot, ready)
                    self._touched.add(ready.target.name)
                    self.progressed.set()
                    computed = True
            finally:
                upcoming.add_done_callback(_give_back)  # what was claimed ahead and is not computed
        return computed

    def _prepare(self, units: Iterator[Unit]) -> "_Ready | None":
        """The next unit that nobody else holds, its prompts written; None when there is none left."""
        for target, number in units:
            if self.stopping.is_set():
                return None
            claim = None if target.stands() else target.shards.claim(number)
            if claim is not None and not target.stands():
                return _Ready(
                    target,
                    number,
                    claim,
                    target.asker.write(self.questions.read(target.chunks[number])),
                )
        return None

    def _compute(self, slot: Slot, ready: "_Ready") -> None:
        for deaths in range(_STARTS_AGAIN + 1):
            try:
                engine = slot.serve(ready.target.model_path)
                self._check_lengths(engine, ready)
                engine.reset_cache()
                engine.finished = self._count_of(ready)
                started = time.monotonic()
                table = ready.target.asker.ask(engine, ready.written)
                break
            except EngineDied as error:
                slot.close()
                if self.stopping.is_set() or deaths == _STARTS_AGAIN:
                    raise
                say(
                    f"{str(error).splitlines()[0]}; a new one is started and goes on with shard {ready.number}"
                )
        meta = {
            "tokens": ready.written.tokens,
            "scoring": time.monotonic() - started,
        } | slot.taken_seconds()
        ready.target.shards.write(
            ready.number, table.replace_schema_metadata({_META: json.dumps(meta)})
        )

    def _check_lengths(self, engine: EngineProcess, ready: "_Ready") -> None:
        """Of a target's first chunk, the longest of all its questions too: better told now than after hours."""
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


def _give_back(upcoming: "Future[_Ready | None]") -> None:
    if (
        not upcoming.cancelled()
        and upcoming.exception() is None
        and (ready := upcoming.result()) is not None
    ):
        ready.claim.close()


@dataclass(frozen=True)
class _Ready:
    """A claimed chunk whose prompts are written."""

    target: Target
    number: int
    claim: IO[str]
    written: Written


def check_lengths(written: Written, context_length: int) -> None:
    for question, tokens in written.lengths():
        if tokens > context_length:
            raise DataError(
                Place(f"question {question.id}"),
                f"its prompt has {tokens} tokens, more than the model's context takes ({context_length})",
                "Lower probe.num_shots, remove the question, or choose a model with a longer context",
            )
