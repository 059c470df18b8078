"""The memory of this node that processes may still take, and what this process has taken. Linux; elsewhere the physical memory."""

import os
from pathlib import Path

_ROOT = Path("/")
# By version of the control groups: files of the limit and of what is used, the field of what can be given back at once.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available(root: Path = _ROOT) -> float:
    """Bytes that new processes can take without swapping: the kernel's MemAvailable, or less where a control group (a container's,
    or that of a SLURM job) leaves less."""
    physical = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(
        0.0,
        min(
            _field(root / "proc/meminfo", "MemAvailable:", 1024) or physical, *_left_in_groups(root)
        ),
    )


def own(root: Path = _ROOT) -> float:
    """Bytes that this process has taken itself, without mapped files; 0 where Linux's counter is missing."""
    return _field(root / "proc/self/status", "RssAnon:", 1024) or 0.0


def _left_in_groups(root: Path) -> list[float]:
    """What this process's control group leaves, and each group that it is in."""
    found = [float("inf")]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version, mount = (
            (2, root / "sys/fs/cgroup") if not controllers else (1, root / "sys/fs/cgroup/memory")
        )
        group = mount / path.lstrip("/")
        found += [
            _left(folder, version)
            for folder in (group, *group.parents)
            if folder.is_relative_to(mount)
        ]
    return found


def _left(group: Path, version: int) -> float:
    limit, used, reclaimable = _FILES[version]
    try:
        most, now = float(_read(group / limit)), float(_read(group / used))
    except ValueError:  # "max", or a group that is not visible from inside a container
        return float("inf")
    return most - now + (_field(group / "memory.stat", reclaimable, 1) or 0.0)


def _field(path: Path, name: str, unit: int) -> float | None:
    """The number behind a name in a file of lines, times `unit`."""
    words = next(
        (line.split() for line in _read(path).splitlines() if line.split()[:1] == [name]), None
    )
    return None if words is None else float(words[1]) * unit


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
