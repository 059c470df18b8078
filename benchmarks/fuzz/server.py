"""Runs cases in forked children of a process that has imported everything once.

A child has a time limit and a memory limit. It runs a command as the command line does, then the
case's oracle, and ends. The parent reads the exit status and what was printed.
"""

import contextlib
import faulthandler
import gc
import importlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.case import Case

SECONDS = 20.0
_MEMORY = 3 << 30
"""Bytes of address space that a child may add to those of its parent."""
_ORACLE = "\x00oracle: "
_BY_ORACLE = 99
OUTCOMES = ("read", "refused", "unclear", "traceback", "hang", "crash", "silent")


@dataclass(frozen=True)
class Outcome:
    """What became of a case: one of `OUTCOMES`, and what was printed."""

    name: str
    output: str
    seconds: float


def run(case: Case, folder: Path, seconds: float = SECONDS, modules: Path | None = None) -> Outcome:
    """Writes the case below `folder`, which is emptied, and runs it in a child.

    `modules`: a file for the names of the modules that the child has imported in the end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "case"
    work.mkdir(parents=True)
    case.write(work)
    log, started = folder / "output", time.monotonic()
    child = os.fork()
    if child == 0:
        _in_child(case, work, log, modules)
    status = _wait(child, seconds)
    took = time.monotonic() - started
    output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return Outcome(_judged(status, output), output, took)


def warm(case: Case, folder: Path) -> None:
    """Imports what a command imports, so that children start with it. Starts no threads."""
    modules = folder.with_name("modules")
    outcome = run(case, folder, 10 * SECONDS, modules)
    if outcome.name != case.expected:
        raise RuntimeError(f"{outcome.name}, not {case.expected}: {case.argv}\n{outcome.output}")
    for name in modules.read_text(encoding="utf-8").splitlines():
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _wait(child: int, seconds: float) -> int | None:
    """Returns the child's status; None, after killing it, if it hangs.

    It hangs if it takes more than `seconds` of CPU time, or none for `seconds`: on a busy machine,
    the time alone says nothing.
    """
    used, changed, pause = 0.0, time.monotonic(), 0.002
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        now = _cpu_seconds(child)
        if now > used:
            used, changed = now, time.monotonic()
        if used > seconds or time.monotonic() - changed > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.3, 0.05)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _judged(status: int | None, output: str) -> str:
    if status is None:
        return "hang"
    if os.WIFSIGNALED(status):
        return "crash"
    code = os.WEXITSTATUS(status)
    if "Traceback (most recent call last)" in output:
        return "traceback"
    if code == _BY_ORACLE:
        return "silent"
    if code == 0:
        return "read"
    if code not in (2, 3):
        return "crash"
    return "refused" if _is_clear(output) else "unclear"


_CLEAR = re.compile(r"Error: .{10,}|Usage: ", re.DOTALL)
_PYTHON = re.compile(r"\w+Error\(|object at 0x|NoneType|<class '")
"""Words of the interpreter, which are no message for users."""


def _is_clear(output: str) -> bool:
    """True if a refusal names something and has no words of the interpreter."""
    return bool(_CLEAR.search(output)) and not _PYTHON.search(output)


def _in_child(case: Case, work: Path, log: Path, modules: Path | None) -> None:
    """Runs the case and ends the process."""
    code = 70
    try:
        os.setpgid(0, 0)
        gc.disable()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(out, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", "backslashreplace")
            for number in (1, 2)
        )
        faulthandler.disable()
        os.chdir(work)
        code = _command(case)
        if code == 0 and case.oracle is not None:
            sys.stdout.flush()
            found = case.oracle(work, log.read_text(encoding="utf-8", errors="replace"))
            if found is not None:
                print(_ORACLE + found)
                code = _BY_ORACLE
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            if modules is not None:
                modules.write_text("\n".join(sys.modules), encoding="utf-8")
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(case: Case) -> int:
    """Runs the command as its program does; returns the exit code."""
    try:
        case.program.main(args=case.argv, prog_name="fuzz", standalone_mode=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Keeps the user's caches out of it, and the network."""
    changes = {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
