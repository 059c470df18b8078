"""Detection of ranks that have failed or hang.

NCCL and gloo block for many minutes when a peer is gone, and for ever when one hangs outside of a
collective. Each rank therefore writes a beat to the rendezvous's store, with what it is doing
(`activity`). A lost rank or node ends all others within a minute. If no rank advances for longer
than a limit, all of them print their stacks, and the launch ends with a sentence that names the
ranks that the others wait for (`stall`).
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ift_scale.errors import printable
from ift_scale.ranks import activity, rendezvous, stacks, stall
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.ranks.stall import RankReport
from ift_scale.ranks.store import StoreError

BEAT_SECONDS = 2.0
MISSED_BEATS = 20
"""Number of checks without a new beat after which a rank counts as lost. It counts checks instead
of seconds so that a job that was suspended as a whole can continue."""
SLOW_FACTOR = 4
"""Number of times the limit that a slow phase may take: start, first step, checkpoint, export."""
_REPORT_BEATS = 4
"""Number of checks within which the ranks report what they are doing."""
_LEAST_BYTES = 1 << 20
"""Bytes read or written between two checks that count as progress in a slow phase."""
_LEFT = "left"


class Heartbeat:
    """Threads that end this process when another rank has failed, disappeared, or hangs.

    `lost(rank, message)` is called once on rank 0 for a rank whose beats stopped, or, with None, if
    the launch hangs. The other ranks notice a dead rank 0 by its closed connection. If its whole
    node is silent (power loss), a second thread notices that the first no longer gets answers.

    `name`: distinguishes the heartbeats of a launch, one after another; the same on all ranks.
    `limit`: seconds in which at least one rank must advance; 0 for no limit. Slow phases may take
    `SLOW_FACTOR` times as long, and reading or writing a disk counts as progress there. `survives`:
    a lost rank does not end the others, which take over its work; a rank that hangs does.
    """

    def __init__(
        self,
        meeting: Rendezvous,
        lost: Callable[[int | None, str], None],
        leave: Callable[[int], None] = os._exit,
        name: str = "",
        limit: float = 0.0,
        survives: bool = False,
    ):
        self._ranks, self._lost, self._leave = meeting.ranks, lost, leave
        self._limit, self._survives = limit, survives
        # A blocking call of the main thread occupies the first connection.
        self._store = meeting.store.another()
        self._name = f"watch/{name}"
        self._alarm = f"{self._name}/alarm"
        self._closed = threading.Event()
        self._silent: Counter[int] = Counter()
        self._last_beats: dict[int, bytes] = {}
        self._states: dict[int, dict[str, Any]] = {}
        self._stalled, self._last_progress = 0, -1
        self._reported, self._unanswered, self._bytes, self._io = False, 0, stacks.io_bytes(), 0
        self._examined: set[int] = set()
        stacks.print_on_signal()
        self._store.set(self._process(self._ranks.rank), stacks.process_mark())
        self._rank_zero, self._alone = "", False
        self._write_beat(0)
        self._threads = [
            threading.Thread(target=target, daemon=True, name=f"heartbeat {target.__name__}")
            for target in (self._run, self._check_link)
        ]
        for thread in self._threads:
            thread.start()

    def _beat(self, rank: int) -> str:
        return f"{self._name}/{rank}"

    def _process(self, rank: int) -> str:
        return f"{self._name}/process/{rank}"

    def fail(self, message: str) -> None:
        """Reports to the other ranks that this one has failed; they end within seconds.

        Returns when they know, or after a few beats.
        """
        self._closed.set()
        try:
            if not self._find_alarm().get("end"):
                here = f"rank {self._ranks.rank} on {socket.gethostname()}"
                everyone = range(self._ranks.world_size)
                self._raise_alarm(end=f"{here} failed: {message}", readers=everyone)
            self._leave_together(self._find_alarm()["readers"])
        except StoreError:
            return  # rank 0 is gone, which the others notice themselves

    def close(self) -> None:
        """Stops the threads, before this rank leaves with its work done."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        try:
            self._store.set(self._beat(self._ranks.rank), json.dumps({"state": _LEFT}))
        except StoreError:
            return  # rank 0 has left before

    def _run(self) -> None:
        beat = 0
        while not self._closed.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._write_beat(beat)
                if alarm := self._find_alarm():
                    self._answer(alarm)
                elif self._ranks.is_rank_zero:
                    self._check_beats()
                    self._check_progress()
                elif not self._rank_zero and self._store.check([self._process(0)]):
                    self._rank_zero = self._store.get(self._process(0)).decode()
                self._unanswered = 0
            except StoreError:
                if self._survives:
                    return self._watch_alone()
                self._end("rank 0 or its node is gone")

    def _watch_alone(self) -> None:
        """Ends this rank if it hangs after rank 0 has left with the work done."""
        self._alone, stalled, last = True, 0, -1
        while not self._closed.wait(BEAT_SECONDS):
            progress = activity.current.progress
            stalled, last = (stalled + 1 if progress == last else 0), progress
            if self._limit and stalled * BEAT_SECONDS >= self._limit:
                self._print_stacks()
                self._end(f"rank 0 has left, and no progress was made for {self._limit:.0f} s")

    def _write_beat(self, beat: int) -> None:
        now = activity.current
        if now.slow and (done := stacks.io_bytes()) - self._bytes >= _LEAST_BYTES:
            self._bytes, self._io = done, self._io + 1
        state = {"beat": beat, "progress": now.progress + self._io, "slow": now.slow}
        self._store.set(self._beat(self._ranks.rank), json.dumps(state))

    def _find_alarm(self) -> dict[str, Any]:
        if not self._store.check([self._alarm]):
            return {}
        return dict(json.loads(self._store.get(self._alarm)))

    def _raise_alarm(
        self, missing: Sequence[int] = (), end: str = "", readers: Sequence[int] = ()
    ) -> None:
        """`readers`: the ranks that are expected to read `end`."""
        alarm = {"missing": list(missing), "end": end, "readers": list(readers)}
        self._store.set(self._alarm, json.dumps(alarm))

    def _check_link(self) -> None:
        while not (self._closed.wait(BEAT_SECONDS) or self._alone):
            self._unanswered += 1
            if self._unanswered >= MISSED_BEATS:
                seconds = MISSED_BEATS * BEAT_SECONDS
                message = f"rank 0's node has not answered for {seconds:.0f} s"
                self._print_stacks()
                if reason := self._wake_rank_zero():
                    message = f"has not responded for {seconds:.0f} s: {reason}"
                    self._lost(0, message)
                    message = f"rank 0 {message}"
                self._end(message)

    def _wake_rank_zero(self) -> str:
        """On the next rank of rank 0's host: makes rank 0 print its stacks."""
        first = self._ranks.local_rank == 1
        if not (first and self._rank_zero and stacks.is_neighbour(self._rank_zero)):
            return ""
        return stacks.wake(self._rank_zero)[1]

    def _check_beats(self) -> None:
        for rank in range(1, self._ranks.world_size):
            key = self._beat(rank)
            beat = self._store.get(key) if self._store.check([key]) else b""
            is_silent = beat == self._last_beats.get(rank, b"")
            self._silent[rank] = self._silent[rank] + 1 if is_silent else 0
            self._last_beats[rank] = beat
            self._states[rank] = json.loads(beat) if beat else {}
            if self._survives or self._states[rank].get("state") == _LEFT:
                continue
            # A rank without any beat yet may still be importing modules from a cold cache.
            limit = MISSED_BEATS if beat else rendezvous.JOIN_SECONDS / BEAT_SECONDS
            if self._silent[rank] >= limit:
                self._end_launch(limit * BEAT_SECONDS, rank)
                return

    def _check_progress(self) -> None:
        """Ends the launch if no rank has advanced for the limit, counted in checks."""
        now = activity.current
        self._states[0] = {"progress": now.progress + self._io, "slow": now.slow}
        progress = sum(state.get("progress", 0) for state in self._states.values())
        self._stalled = self._stalled + 1 if progress == self._last_progress else 0
        self._last_progress = progress
        alive = [s for rank, s in self._states.items() if self._silent[rank] < MISSED_BEATS]
        slow = any(state.get("slow", False) for state in alive)
        limit = self._limit * (SLOW_FACTOR if slow else 1)
        if limit and self._stalled * BEAT_SECONDS >= limit:
            self._end_launch(limit)

    def _end_launch(self, seconds: float, lost: int | None = None) -> None:
        """On rank 0: gathers what all ranks are doing, and ends them with a message.

        `lost`: the rank whose beats stopped, None if the launch hangs.
        """
        self._raise_alarm()
        self._report()
        working = [r for r in range(self._ranks.world_size) if self._works(r)]
        reports = self._reports(working)
        unknown = "it was killed, or its node is gone"
        silent = {rank: unknown for rank in working if rank not in reports}
        if silent:
            self._raise_alarm(list(silent))
            self._examine(list(silent))
            found = self._collect(self._found, list(silent))
            silent |= {rank: str(found[rank]["problem"]) for rank in found}
            # Those that continue print their stacks, too.
            reports |= self._reports([rank for rank in found if found[rank]["exists"]])
        if lost is None:
            message = stall.explain(reports, silent, seconds)
            self._lost(None, message)
            self._raise_alarm(end=message, readers=list(reports))
        else:
            reason = stall.reason(silent.get(lost, "it was stopped"), reports.get(lost))
            message = f"has not responded for {seconds:.0f} s{reason}"
            self._lost(lost, message)
            self._raise_alarm(end=f"rank {lost} {message}", readers=list(reports))

    def _works(self, rank: int) -> bool:
        """False for a rank that has left, or that had no share in work that survives its loss."""
        if not self._states.get(rank):
            return not self._survives
        return self._states[rank].get("state") != _LEFT

    def _collect(
        self, key: Callable[[int], str], ranks: Sequence[int]
    ) -> dict[int, dict[str, Any]]:
        """Returns the values that the ranks, or others for them, set within a few beats."""
        for _ in range(_REPORT_BEATS):
            if self._store.check([key(rank) for rank in ranks]):
                break
            time.sleep(BEAT_SECONDS)
            self._unanswered = 0
        there = [rank for rank in ranks if self._store.check([key(rank)])]
        return {rank: json.loads(self._store.get(key(rank))) for rank in there}

    def _reports(self, ranks: list[int]) -> dict[int, RankReport]:
        found = self._collect(self._report_of, ranks)
        return {rank: RankReport(**fields) for rank, fields in found.items()}

    def _report_of(self, rank: int) -> str:
        return f"{self._name}/report/{rank}"

    def _found(self, rank: int) -> str:
        return f"{self._name}/found/{rank}"

    def _answer(self, alarm: dict[str, Any]) -> None:
        """Reports, examines silent ranks of this host, or ends, as rank 0 asks."""
        self._report()
        self._examine(alarm["missing"])
        if alarm["end"]:
            self._end(alarm["end"], alarm["readers"])

    def _report(self) -> None:
        """Prints this rank's stacks and sends rank 0 what it is doing, once."""
        if self._reported:
            return
        self._reported = True
        now = activity.current
        mine = RankReport(
            self._ranks.rank,
            socket.gethostname(),
            str(now),
            now.look_at,
            now.position,
            stacks.place(),
            stacks.collective(),
            now.waits,
        )
        self._print_stacks()
        self._store.set(self._report_of(self._ranks.rank), json.dumps(asdict(mine)))

    def _print_stacks(self) -> None:
        here = f"rank {self._ranks.rank} on {socket.gethostname()}"
        stacks.print_stacks(f"{here} was {activity.current}")

    def _examine(self, silent: list[int]) -> None:
        """Looks for the processes of silent ranks, if they are on this host."""
        for rank in silent:
            if rank in self._examined or rank == self._ranks.rank:
                continue
            self._examined.add(rank)
            if not self._store.check([self._process(rank)]):
                continue
            mark = self._store.get(self._process(rank)).decode()
            # One rank of the host does it.
            key = self._found(rank)
            if stacks.is_neighbour(mark) and self._store.add(f"{key}/examiner", 1) == 1:
                exists, problem = stacks.wake(mark)
                self._store.set(key, json.dumps({"exists": exists, "problem": problem}))

    def _end(self, message: str, readers: Sequence[int] = ()) -> None:
        if not self._closed.is_set():
            text = printable(f"rank {self._ranks.rank} ended: {message}")
            print(text, file=sys.stderr, flush=True)
            if readers:
                with contextlib.suppress(StoreError):  # rank 0 has left
                    self._leave_together(readers)
            self._leave(1)

    def _leave_together(self, readers: Sequence[int]) -> None:
        """Waits until the others know why the launch ends, or for a few beats.

        When any rank leaves, the collectives of the others fail. Rank 0, which reports the reason,
        is therefore the first to leave; the store ends with it, which the others notice.
        """
        self._store.set(self._read_by(self._ranks.rank), "{}")
        if self._ranks.is_rank_zero:
            self._collect(self._read_by, readers)
            return
        for _ in range(_REPORT_BEATS):
            time.sleep(BEAT_SECONDS)
            self._store.check([self._alarm])  # StoreError: rank 0 has left

    def _read_by(self, rank: int) -> str:
        return f"{self._name}/read/{rank}"
