"""The scoring core of probing and evaluation: chunks of questions become shards, merged in order.

A *target* is one result (the probe, or one arm's evaluation). Its chunks depend only on its
questions and the chunk size. Every engine of every rank first takes its own share of the chunks,
then what is left of the others'. A shard is a pure function of its chunk and the weights, because
an engine drops its cache before each chunk. The merged result is therefore the same for any number
of engines. While an engine works on one chunk, the next one is read, rendered and tokenised.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ift_scale.engines.pool import EngineWorker
from ift_scale.io.progress import Bar, say
from ift_scale.ranks import activity
from ift_scale.ranks.environment import Ranks
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.target import Target
from ift_scale.scoring.worker import ChunkWork

_POLL_SECONDS = 0.1
_RESCAN_SECONDS = 2.0
# A chunk consists of many thousand small lists without reference cycles. Running Python's cyclic
# garbage collector after every 700 allocations took 40% of the time.
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
    activity.within("")
    activity.alone("starting the engine", "its log")
    run = ChunkWork(questions, targets, bar)
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
    run: ChunkWork,
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
            activity.alone(f"merging {target.name}", f"the disk of {target.folder}", slow=True)
            activity.advance()
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
