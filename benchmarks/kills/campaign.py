"""One life of a run: killed at one moment after another, resumed each time, then compared."""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.kills import artifacts
from benchmarks.kills.attempt import SETTINGS, Attempt, Process
from benchmarks.kills.moments import Moment
from ift_scale.errors import EXIT_ENVIRONMENT, EXIT_STOPPED
from ift_scale.io.progress import say

GONE_SECONDS, TERM_SECONDS, FAILED_SECONDS = 5.0, 10.0, 60.0
"""Limits: of what outlives a killed command; of SIGTERM outside of a step; of a killed rank.

The latter two hold for an idle machine. Where more processes want to run than there are cores, each
gets a part of one, and the limits are multiplied accordingly.
"""
_POLL_SECONDS = 0.005
_MOMENT_SECONDS = 900.0
_SAVED = ("inside", "after the last step", "exporting", "writing a checkpoint")
"""Parts of the names of moments at which SIGTERM waits for a step, a checkpoint or an export."""


class Violation(Exception):
    """A promise of docs/reliability.md does not hold."""


class Target(NamedTuple):
    """What is killed: "command", "launcher", "node launcher", "rank 0" or "rank 1", and how.

    Without such a process at the moment, the command is killed.
    """

    who: str
    signal: signal.Signals

    def pick(self, processes: Sequence[Process]) -> Process | None:
        launchers = sorted(p for p in processes if p.is_launcher)
        if self.who == "launcher" and launchers:
            return launchers[0]
        if self.who == "node launcher" and len(launchers) > 1:
            return launchers[1]
        ranks = [p for p in processes if p.is_rank and self.who == f"rank {p.rank}"]
        return ranks[0] if ranks else None


COMMAND_KILLED = Target("command", signal.SIGKILL)


class Kill(NamedTuple):
    """A kill that kept all promises.

    `seconds`: until all processes of the run were gone.
    """

    moment: str
    who: str
    signal: str
    seconds: float
    exit_code: int


class Life:
    """A run in `folder` with these settings and overrides of them.

    `kills`: those so far. They are recorded beside the folder, so that a life can be continued.
    """

    def __init__(
        self,
        folder: Path,
        overrides: tuple[str, ...],
        seed: int,
        settings: tuple[str, ...] = SETTINGS,
    ):
        self.folder, self.overrides, self._settings = folder, overrides, settings
        self._record = folder.with_name(f"{folder.name}-kills.jsonl")
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        self.kills = [Kill(**json.loads(line)) for line in lines]
        self._random = random.Random(seed)

    def live(self, moments: Sequence[Moment], targets: Sequence[Target]) -> None:
        """Kills the run at each moment, each time another of the targets, and ends it at last.

        A moment that a run passes too fast to be seen is left out. Raises Violation.
        """
        titles = [moment.title for moment in moments]
        before = [titles.index(kill.moment) for kill in self.kills if kill.moment in titles]
        left = list(moments[max(before, default=-1) + 1 :])
        while left:
            attempt = self._start()
            moment = self._wait(attempt, left)
            if moment is None:
                break
            self._kill(attempt, moment, targets[len(self.kills) % len(targets)])
        else:
            attempt = self._start()
        code = attempt.wait(_MOMENT_SECONDS)
        if code != 0:
            raise Violation(f"the last start ended with {code}: {attempt.output[-2000:]}")
        if left_over := attempt.processes():
            raise Violation(f"processes of a finished run: {left_over}")

    def compare(self, reference: Path) -> int:
        """Returns the number of files that are equal to the reference's; raises Violation."""
        if found := artifacts.differences(self.folder, reference):
            raise Violation(f"{self.folder}: {'; '.join(found)}")
        return len(artifacts.files(self.folder))

    def _start(self) -> Attempt:
        return Attempt(self.folder, self.overrides, settings=self._settings)

    def _wait(self, attempt: Attempt, left: list[Moment]) -> Moment | None:
        """Waits for the first moment left, and removes it and those that have passed.

        Returns None if the run ended before.
        """
        deadline = time.monotonic() + _MOMENT_SECONDS
        while left and attempt.process.poll() is None:
            moment = left[0]
            # The state may pass between two looks, so the order of the looks matters.
            passed = bool(moment.stage) and attempt.is_done(moment.stage)
            if not passed and moment.seen(attempt):
                time.sleep(self._random.uniform(0, moment.delay))
                return left.pop(0)
            if passed:
                say(f"{self.folder.parent.name}: did not see {moment.title}")
                left.pop(0)
            if time.monotonic() > deadline:
                attempt.kill()
                raise Violation(f"{moment.title} did not come: {attempt.output[-2000:]}")
            time.sleep(_POLL_SECONDS)
        return None

    def _kill(self, attempt: Attempt, moment: Moment, target: Target) -> None:
        victim = target.pick(attempt.processes()) if target.who != "command" else None
        who, pid = (target.who, victim.pid) if victim else ("command", attempt.process.pid)
        started = time.monotonic()
        os.kill(pid, target.signal)
        killed = who == "command" and target.signal == signal.SIGKILL
        saves = who != "command" or any(part in moment.name for part in _SAVED)
        load = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
        limit = GONE_SECONDS if killed else load * (FAILED_SECONDS if saves else TERM_SECONDS)
        while attempt.processes() and time.monotonic() - started < limit:
            time.sleep(_POLL_SECONDS)
        seconds = time.monotonic() - started
        left = attempt.processes()
        attempt.kill()
        code = attempt.wait(FAILED_SECONDS)
        where = f"{self.folder.parent.name}, {moment.title}, {target.signal.name} to {who}"
        say(f"{where}: {seconds:.2f} s, exit code {code}")
        if left:
            raise Violation(f"{where}: after {limit:.0f} s {[p.command for p in left]}")
        _check_end(where, who, target.signal, code, attempt.output)
        self.kills.append(Kill(moment.title, who, target.signal.name, seconds, code))
        with self._record.open("a") as record:
            record.write(json.dumps(self.kills[-1]._asdict()) + "\n")


def _check_end(where: str, who: str, number: signal.Signals, code: int, output: str) -> None:
    """Raises Violation for an exit code or an output that does not say what happened."""
    # Before Python handles signals, and at its end, the command dies of the signal.
    codes = {-number, EXIT_STOPPED} if who == "command" else {EXIT_ENVIRONMENT, EXIT_STOPPED}
    # The command may have been about to end.
    if code not in codes | ({0} if "report: writing" in where else set()):
        raise Violation(f"{where}: exit code {code}: {output[-2000:]}")
    # The end of the ranks' log is quoted, indented, and may have tracebacks.
    if "\nTraceback" in output and code != -number:
        raise Violation(f"{where}: a traceback: {output[-3000:]}")
