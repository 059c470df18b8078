"""Samples memory, open files and threads of running processes, and decides whether they are flat.

Memory is read from /proc/PID/smaps_rollup: RSS; PSS, which counts pages that processes share only
in part; and anonymous memory, which has no pages of files. Reads /proc only, so it costs the
processes nothing but the time of the kernel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.suite.growth import growth_between

RSS, PSS, OWN, FILES, THREADS = "RSS", "PSS", "anonymous memory", "open files", "threads"
MEMORY = (RSS, PSS, OWN)
MIB = 1 << 20
_WARM_UP, _BINS = 0.2, 20
_GROWTH_OF_MEMORY, _GROWTH_OF_COUNTS = 0.01, 1.0
"""Allowed over the measured part: of the level; files or threads."""


class Growth(NamedTuple):
    """By how much a quantity grew over the work after the first fifth, with its 95% interval.

    `level`: mean. In MiB for memory.
    """

    level: float
    value: float
    low: float
    high: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """False if it grew, beyond doubt and by more than is allowed."""
        return self.low <= 0 or self.value <= self.allowed


def sample(pid: int) -> dict[str, float] | None:
    """Returns memory (MiB), open files and threads of a process; None if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        fields = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
        return {
            RSS: int(fields["Rss"]) * 1024 / MIB,
            PSS: int(fields["Pss"]) * 1024 / MIB,
            OWN: int(fields["Anonymous"]) * 1024 / MIB,
            FILES: sum(1 for _ in (folder / "fd").iterdir()),
            THREADS: sum(1 for _ in (folder / "task").iterdir()),
        }
    except (OSError, KeyError):
        return None


def growths(samples: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, Growth]:
    """Returns the growth of each quantity over the work.

    `samples`: (work done, quantities) in order. The first fifth of the work is left out, in which
    caches and pools fill. Means over bins of equal work are fitted, since neighbouring samples
    depend on each other.
    """
    total = samples[-1][0]
    start = _WARM_UP * total
    bins: dict[int, list[tuple[float, Mapping[str, float]]]] = {}
    for done, quantities in samples:
        if done >= start:
            number = min(_BINS - 1, int((done - start) / (total - start) * _BINS))
            bins.setdefault(number, []).append((done, quantities))
    found = {}
    for name in samples[0][1]:
        points = [
            (fmean(done for done, _ in members), fmean(q[name] for _, q in members))
            for members in bins.values()
        ]
        level = fmean(value for _, value in points)
        allowed = _GROWTH_OF_MEMORY * level if name in MEMORY else _GROWTH_OF_COUNTS
        found[name] = Growth(level, *growth_between(points, start, total), allowed)
    return found
