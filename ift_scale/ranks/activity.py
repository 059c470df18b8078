"""What this process is doing, for the heartbeat, which ends a launch in which nothing advances.

The work calls `begin` where all ranks pass, `alone` where only some do, and `advance` within a long
phase. Each sets a few fields of one object (under a microsecond). The heartbeat's thread reads them
every few seconds.
"""

from dataclasses import dataclass


@dataclass
class Activity:
    """`label`: the current phase, such as "computing micro-batch 2 of 3". `within`: of what, such
    as "step 7 of arm a". `look_at`: what to check if it hangs.

    `slow_phase`, `slow_within`: may take several times the limit. `waits`: for other ranks, so that
    this is not the rank that the others wait for.
    """

    label: str = "starting"
    within: str = ""
    look_at: str = ""
    slow_phase: bool = True
    slow_within: bool = False
    waits: bool = False
    position: int = 0
    """Number of shared phases begun. Ranks at the same place of the program have the same one."""
    progress: int = 0
    """Number of signs of progress."""

    @property
    def slow(self) -> bool:
        return self.slow_phase or self.slow_within

    def __str__(self) -> str:
        return f"{self.label} ({self.within})" if self.within else self.label


current = Activity()
"""Of this process: a rank does one thing at a time."""


def within(context: str, slow: bool = False) -> None:
    """Sets what the following phases are part of; none if empty."""
    current.within, current.slow_within = context, slow


def begin(label: str, look_at: str = "", slow: bool = False) -> None:
    """Begins a phase that every rank passes in the same order, which is a sign of progress."""
    current.position += 1
    alone(label, look_at, slow)
    advance()


def alone(label: str, look_at: str = "", slow: bool = False, waits: bool = False) -> None:
    """Begins a phase that other ranks may not pass. No sign of progress: it may be repeated."""
    current.label, current.look_at, current.slow_phase, current.waits = label, look_at, slow, waits


def advance() -> None:
    """A sign of progress within the current phase."""
    current.progress += 1
