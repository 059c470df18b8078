"""An engine in a child process: started once, asked through a pipe, and really gone afterwards.

The child's own output goes to a log file; when it fails, the user sees the file's last lines.
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ift_scale.errors import EnvironmentProblem
from ift_scale.inference.engine import EngineSpec, ScoreRequest

_PR_SET_PDEATHSIG = 1
_LOG_LINES_SHOWN = 15


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent is gone, so that a killed run leaves no engine behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class EngineProcess:
    """The engine protocol, answered by a child. `seconds_to_start` counts imports and loading."""

    def __init__(self, spec: EngineSpec, log: Path):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, spec, str(log)), daemon=False)
        started = time.monotonic()
        self._child.start()
        theirs.close()
        self.context_length = int(self._answer())
        self.seconds_to_start = time.monotonic() - started

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        return self._ask("score", list(requests))

    def load_weights(self, path: Path) -> None:
        self._ask("load_weights", path)

    def _ask(self, method: str, argument: Any) -> Any:
        try:
            self._pipe.send((method, argument))
        except BrokenPipeError:
            raise self._dead() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            ok, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._dead() from None
        if not ok:
            raise EnvironmentProblem(f"the inference engine failed: {value}\n{self._log_tail()}")
        return value

    def _dead(self) -> EnvironmentProblem:
        self._child.join(timeout=10)
        return EnvironmentProblem(f"the inference engine died (exit code {self._child.exitcode})\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return "\n".join([f"the last lines of {self.log}:", *(f"  {line}" for line in lines)])

    def close(self) -> None:
        self._pipe.close()
        self._child.join(timeout=30)
        if self._child.is_alive():
            self._child.kill()
            self._child.join()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _serve(pipe: Connection, spec: EngineSpec, log: str) -> None:
    """The child: build the engine, then answer until the pipe closes."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        from ift_scale.inference.engine import build

        engine = build(spec)
        pipe.send((True, engine.context_length))
        while True:
            method, argument = pipe.recv()
            pipe.send((True, getattr(engine, method)(argument)))
    except EOFError:
        pass  # the parent has closed its end: done
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        pipe.send((False, f"{type(error).__name__}: {error}"))
    # vLLM's worker threads can keep an interpreter alive at exit; nothing is left to save here.
    sys.stdout.flush()
    os._exit(0)
