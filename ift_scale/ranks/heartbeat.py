"""Detection of failed ranks.

NCCL and gloo block for many minutes when a peer is gone. Each rank therefore writes a beat to the
rendezvous's store, and a lost rank or node ends all others within a minute.
"""

import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from ift_scale.errors import printable
from ift_scale.ranks import rendezvous
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.ranks.store import StoreError

BEAT_SECONDS = 2.0
MISSED_BEATS = 20
"""Number of checks without a new beat after which a rank counts as lost. It counts checks instead
of seconds so that a job that was suspended as a whole can continue."""

_FAILED = "watch/failed"


def _beat(rank: int) -> str:
    return f"watch/{rank}"


class Heartbeat:
    """Threads that end this process when another rank has failed or disappeared.

    `lost(rank, message)` is called once on rank 0 for a rank whose beats stopped. The other ranks
    notice a dead rank 0 by its closed connection. If its whole node is silent (power loss), a
    second thread notices that the first no longer gets answers.
    """

    def __init__(
        self,
        meeting: Rendezvous,
        lost: Callable[[int, str], None],
        leave: Callable[[int], None] = os._exit,
    ):
        self._ranks, self._lost, self._leave = meeting.ranks, lost, leave
        # A blocking call of the main thread occupies the first connection.
        self._store = meeting.store.another()
        self._closed = threading.Event()
        self._silent: Counter[int] = Counter()
        self._last_beats: dict[int, bytes] = {}
        self._unanswered = 0
        self._store.set(_beat(self._ranks.rank), "0")
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._run, self._check_link)
        ]
        for thread in self._threads:
            thread.start()

    def fail(self, message: str) -> None:
        """Reports to the other ranks that this one has failed; they end within seconds."""
        self._closed.set()
        try:
            if not self._store.check([_FAILED]):
                self._store.set(
                    _FAILED, f"rank {self._ranks.rank} on {socket.gethostname()} failed: {message}"
                )
        except StoreError:
            return  # rank 0 is gone, which the others notice themselves
        self._keep_store_open()

    def close(self) -> None:
        """Stops the threads, before this rank leaves with its work done."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        beat = 0
        while not self._closed.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._store.set(_beat(self._ranks.rank), str(beat))
                if self._store.check([_FAILED]):
                    self._end(self._store.get(_FAILED).decode())
                elif self._ranks.is_rank_zero:
                    self._check_beats()
                self._unanswered = 0
            except StoreError:
                self._end("rank 0 or its node is gone")

    def _check_link(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self._unanswered += 1
            if self._unanswered >= MISSED_BEATS:
                seconds = MISSED_BEATS * BEAT_SECONDS
                self._end(f"rank 0's node has not answered for {seconds:.0f} s")

    def _check_beats(self) -> None:
        for rank in range(1, self._ranks.world_size):
            key = _beat(rank)
            beat = self._store.get(key) if self._store.check([key]) else b""
            is_silent = beat == self._last_beats.get(rank, b"")
            self._silent[rank] = self._silent[rank] + 1 if is_silent else 0
            self._last_beats[rank] = beat
            # A rank without any beat yet may still be importing modules from a cold cache.
            limit = MISSED_BEATS if beat else rendezvous.JOIN_SECONDS / BEAT_SECONDS
            if self._silent[rank] >= limit:
                message = (
                    f"has not responded for {limit * BEAT_SECONDS:.0f} s: it was killed, or its "
                    "node is gone"
                )
                self._lost(rank, message)
                self._store.set(_FAILED, f"rank {rank} {message}")
                return

    def _end(self, message: str) -> None:
        if not self._closed.is_set():
            text = printable(f"rank {self._ranks.rank} ended: {message}")
            print(text, file=sys.stderr, flush=True)
            self._keep_store_open()
            self._leave(1)

    def _keep_store_open(self) -> None:
        """Makes rank 0 leave last, because the store ends with it."""
        if self._ranks.is_rank_zero and self._ranks.world_size > 1:
            time.sleep(2 * BEAT_SECONDS)
