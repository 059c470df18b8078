"""Child processes that end with this process, together with everything that they have started.

A child holds the read end of a pipe whose only write end is in this process. The kernel closes that
end when this process ends for any reason, `kill -9` included, and a thread of the child then kills
the child's process group. This reaches what the kernel's parent-death signal does not: processes
that the child has started, such as the ranks of the deepspeed launcher. It also does not depend on
the thread that started the child.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

_PR_SET_PDEATHSIG = 1


class ChildGroup:
    """A Python module that runs as the leader of a process group of its own.

    `command`: the module and its arguments. `output`: file for what the group prints. The group
    also ends if this object is garbage.
    """

    def __init__(
        self,
        command: Sequence[str],
        output: IO[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ):
        pipe, alive = os.pipe()
        self._close = weakref.finalize(self, os.close, alive)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(pipe), *command],
                pass_fds=[pipe, *pass_fds],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(pipe)

    @property
    def pid(self) -> int:
        """Process id of the leader, which is that of the group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Returns the leader's exit code (negative: the signal that killed it), None if it runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Returns the leader's exit code; raises subprocess.TimeoutExpired after `timeout` s."""
        return self._process.wait(timeout)

    def signal(self, number: int) -> None:
        """Sends a signal to every process of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kills the group. Other threads may wait for it meanwhile."""
        self.signal(signal.SIGKILL)
        self._close()


def die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when the thread that started it ends (Linux).

    For processes that start none themselves. `parent`: process id of the parent, which may have
    ended before this call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def _end_with_parent(pipe: int) -> None:
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


def _run(pipe: int, module: str, arguments: Sequence[str]) -> None:
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
