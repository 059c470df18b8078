"""A node's available memory: the kernel's value, or a control group's if that is lower."""

from pathlib import Path

import pytest

from ift_scale.estimate import host

GIB = 2**30


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {
    "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: {1 << 20} kB\nMemAvailable: {32 << 20} kB\n"
}
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


def _v2(group: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"{V2}{group}/memory.max": limit,
        f"{V2}{group}/memory.current": str(used),
        f"{V2}{group}/memory.stat": f"anon 5\ninactive_file {cache}\n",
    }


def _v1(group: str, limit: int, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"{V1}{group}/memory.limit_in_bytes": str(limit),
        f"{V1}{group}/memory.usage_in_bytes": str(used),
        f"{V1}{group}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}\n",
    }


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 32),
        ({"proc/self/cgroup": "0::/job\n"} | _v2("/job", "max", 5 * GIB), 32),
        ({"proc/self/cgroup": "0::/job\n"} | _v2("/job", str(16 * GIB), 5 * GIB, 2 * GIB), 13),
        (
            {"proc/self/cgroup": "0::/job/step\n"}
            | _v2("/job", str(16 * GIB), 12 * GIB)
            | _v2("/job/step", "max", GIB),
            4,
        ),
        ({"proc/self/cgroup": "0::/job\n"} | _v2("/job", str(16 * GIB), 17 * GIB), 0),
        (
            {"proc/self/cgroup": "0::/outside/docker\n"} | _v2("", str(8 * GIB), GIB),
            7,
        ),  # a container sees its own group as the root
        (
            {"proc/self/cgroup": "5:cpu:/x\n4:memory:/job\n0::/\n"}
            | _v1("/job", 10 * GIB, 4 * GIB, GIB),
            7,
        ),
        ({"proc/self/cgroup": "4:memory:/job\n"} | _v1("/job", (1 << 63) - 4096, GIB), 32),
    ],
)
def test_available(files: dict[str, str], gib: float, tmp_path: Path) -> None:
    _write(tmp_path, MEMINFO | files)
    assert host.available(tmp_path) == gib * GIB


def test_without_linux_the_physical_memory_counts(tmp_path: Path) -> None:
    assert host.available(tmp_path) > GIB / 2 and host.own(tmp_path) == 0


def test_here() -> None:
    assert 0 < host.own() < host.available() + host.own()
