"""Groups of processes end with the process that started them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ift_scale.io.children import ChildGroup

GROUP = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
print(*sys.argv[1:], child.pid, flush=True)
time.sleep(600)
"""
PARENT = """
import os, sys, time
from ift_scale.io.children import ChildGroup
with open(sys.argv[1], "w") as output:
    group = ChildGroup(["group", "words"], output, os.environ)
time.sleep(600)
"""


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _grandchild(output: Path) -> int:
    """The process that the group has started, once it runs."""
    deadline = time.monotonic() + 60
    while not (output.exists() and output.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    words, pid = output.read_text().split()
    assert words == "words"
    return int(pid)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "group.py").write_text(GROUP)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def _assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 5
    while not _ended(pid):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.01)


def test_a_killed_parent_takes_its_group_along(tmp_path: Path, environment: dict[str, str]) -> None:
    output = tmp_path / "output"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(output)], env=environment) as parent:
        grandchild = _grandchild(output)
        parent.send_signal(signal.SIGKILL)
        _assert_ends(grandchild)  # the parent is still a zombie: nobody has waited for it


def test_a_killed_or_forgotten_group_has_ended(tmp_path: Path, environment: dict[str, str]) -> None:
    for name in ("killed", "forgotten"):
        output = tmp_path / name
        with output.open("w") as file:
            group = ChildGroup(["group", "words"], file, environment)
        grandchild = _grandchild(output)
        assert group.poll() is None
        if name == "killed":
            group.kill()
            assert group.wait(5) == -signal.SIGKILL
        del group
        _assert_ends(grandchild)


def test_the_leaders_exit_code_is_kept(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text("import sys\nsys.exit(7)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with (tmp_path / "output").open("w") as file:
        assert ChildGroup(["leaver"], file, environment).wait(60) == 7
