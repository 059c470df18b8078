"""This node's available memory, and the memory of this process. Linux only; on other systems the
physical memory."""

import os
from pathlib import Path

_ROOT = Path("/")
# Per version of control groups: files with the limit and the usage, and the reclaimable field.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available(root: Path = _ROOT) -> float:
    """Returns the bytes that new processes can use without swapping.

    This is the kernel's MemAvailable, or less if a control group (of a container or a SLURM job)
    has a lower limit.
    """
    physical = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    in_kernel = _field(root / "proc/meminfo", "MemAvailable:", 1024) or physical
    return max(0.0, min(in_kernel, *_left_in_groups(root)))


def own(root: Path = _ROOT) -> float:
    """Returns the bytes of this process without mapped files; 0 without Linux's counter."""
    return _field(root / "proc/self/status", "RssAnon:", 1024) or 0.0


def _left_in_groups(root: Path) -> list[float]:
    """Returns the bytes left in this process's control group and in each of its parents."""
    left = [float("inf")]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version, mount = (
            (2, root / "sys/fs/cgroup") if not controllers else (1, root / "sys/fs/cgroup/memory")
        )
        group = mount / path.lstrip("/")
        left += [
            _left(folder, version)
            for folder in (group, *group.parents)
            if folder.is_relative_to(mount)
        ]
    return left


def _left(group: Path, version: int) -> float:
    limit, used, reclaimable = _FILES[version]
    try:
        most, now = float(_read(group / limit)), float(_read(group / used))
    except ValueError:  # "max", or a group that is not visible from inside a container
        return float("inf")
    return most - now + (_field(group / "memory.stat", reclaimable, 1) or 0.0)


def _field(path: Path, name: str, unit: int) -> float | None:
    """Returns the number after a name in a file of lines, times `unit`; None if it is missing."""
    words = next(
        (line.split() for line in _read(path).splitlines() if line.split()[:1] == [name]), None
    )
    return None if words is None else float(words[1]) * unit


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
