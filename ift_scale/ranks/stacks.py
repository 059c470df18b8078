"""The Python stacks of this process, and what can be found out about a process that is silent."""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_PACKAGE = Path(__file__).parent.parent
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
_LIBRARIES = ("torch/", "deepspeed/")
_MESSAGES = ("ranks/rendezvous.py", "ranks/store.py")


def print_on_signal() -> None:
    """Makes SIGUSR2 print all stacks of this process to its log, even if it holds Python's lock."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)


def print_stacks(title: str) -> None:
    """Prints the stacks of all threads to the log, as one piece: ranks may share the file."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"\n{title}, the Python stack of every thread:\n"]
    for ident, frame in sorted(sys._current_frames().items()):
        if ident != threading.get_ident():
            parts += [f"thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)]
    print("".join(parts), file=sys.stderr, flush=True)


def place() -> str:
    """Returns the innermost line of IFT-Scale in the main thread, such as "collate.py:7 in f"."""
    frames = [*_frames(sys._current_frames().get(threading.main_thread().ident or 0))]
    own = [f for f in frames if Path(f.f_code.co_filename).is_relative_to(_PACKAGE)]
    for frame in (own or frames)[:1]:
        path = Path(frame.f_code.co_filename)
        name = path.relative_to(_PACKAGE.parent) if own else path.name
        return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
    return "an unknown place"


def collective() -> str:
    """Returns the name of the collective or message that a thread waits for; empty if none does.

    Backward passes on GPUs run in threads of their own. Collectives of NCCL return at once, so
    that ranks wait for the device elsewhere.
    """
    for ident, innermost in sys._current_frames().items():
        if ident == threading.get_ident() or _is_heartbeat(innermost):
            continue
        frames = [*_frames(innermost)][:6]
        files = [frame.f_code.co_filename for frame in frames]
        if files[0].endswith(_MESSAGES):
            return "a message of another rank"
        if any(part in files[0] for part in _COLLECTIVES):
            return next(f.f_code.co_name for f in frames if f.f_code.co_name != "wrapper")
        line = traceback.extract_stack(innermost, limit=1)[0].line or ""
        if "wait(" in line and any(part in files[0] for part in _LIBRARIES):
            return "a collective"
    return ""


def _is_heartbeat(frame: FrameType) -> bool:
    return any(f.f_code.co_filename.endswith("ranks/heartbeat.py") for f in _frames(frame))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def io_bytes() -> int:
    """Returns the bytes that this process has read from and written to disks; 0 if unknown."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["read_bytes"]) + int(fields["write_bytes"])
    except (OSError, ValueError, KeyError):
        return 0


def process_mark() -> str:
    """Returns an identifier of this process that others on its host can look up."""
    return f"{_host_mark()} {os.getpid()} {_stat(os.getpid())[1]}"


def is_neighbour(mark: str) -> bool:
    """True if the process of a mark is on this host and visible here."""
    return mark.rsplit(" ", 2)[0] == _host_mark()


def wake(mark: str) -> tuple[bool, str]:
    """Makes a silent process of this host print its stacks (SIGUSR2). A stopped one continues.

    Returns (True if it exists, what is wrong with it).
    """
    _, pid, start = mark.rsplit(" ", 2)
    state, started = _stat(int(pid))
    if started != start or state in "ZX":
        return False, f"its process {pid} has ended"
    problems = {
        "T": "was stopped (SIGSTOP, or suspended by a scheduler)",
        "t": "was stopped by a debugger",
        "D": "waits for a disk or a device and cannot be interrupted",
    }
    for number in (signal.SIGCONT, signal.SIGUSR2):
        os.kill(int(pid), number)
    return True, f"its process {pid} {problems.get(state, 'is busy outside of Python')}"


def _host_mark() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{os.uname().nodename} {time.tzname[0]}"


def _stat(pid: int) -> tuple[str, str]:
    """Returns (state, start time) of a process; ("X", "") if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "X", ""
