"""An engine in a child process, called through a pipe; its memory is freed when it ends.

The child's output goes to a log file. If the child fails, the error quotes the end of the log.
"""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ift_scale.engines.deadline import Deadline, no_request_finished, not_started
from ift_scale.engines.protocol import (
    EngineSpec,
    Sampling,
    ScoreRequest,
    TextRequest,
    build,
    ignore,
)
from ift_scale.errors import EXIT_ENVIRONMENT, EXIT_USER, EnvironmentProblem, IFTScaleError
from ift_scale.io.children import ChildGroup
from ift_scale.io.files import log_tail
from ift_scale.io.progress import say
from ift_scale.ranks.stacks import print_on_signal

_SECONDS_TO_END = 10
_SECONDS_BETWEEN_COUNTS = 0.5
_SECONDS_FOR_STACKS = 1.0
# Kinds of messages from the child. A call yields counts and notes, then an answer or a failure.
_ANSWER, _FAILURE, _FINISHED, _NOTE = "answer", "failure", "finished", "note"
# glibc returns every array of a forward pass to the kernel, which zeroes it again for the next one.
# Keeping the memory saves a fifth of the time on a CPU.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class EngineDied(EnvironmentProblem):
    """The child ended without an answer; a new one can repeat the call."""


class EngineHangs(EnvironmentProblem):
    """The child made no progress for too long and was ended."""


class EngineProcess:
    """Implements the engine protocol by calling a child process, which starts at once.

    The first call, or `ready`, waits until the child has loaded the model. `seconds_to_start`
    counts imports and loading. The child ends at the latest with this process.
    """

    def __init__(self, spec: EngineSpec, log: Path):
        self.log = log
        self.finished: Callable[[float], None] = ignore
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        self._started = time.monotonic()
        self._spec = spec
        self._hangs = ""
        self._deadline = Deadline(self._expired)
        self._describe: Callable[[], str] = partial(not_started, spec, log)
        self._num_finished = 0.0
        self._context_length: int | None = None
        environment = _KEEP_MEMORY | os.environ
        if spec.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(spec.devices)
        with theirs, log.open("a", encoding="utf-8") as out:
            # Not multiprocessing, which would run the caller's main module again. The log's path is
            # the last argument, so a process list shows which run an engine belongs to. Processes
            # that the engine starts (one per GPU) are killed with it.
            command = [__name__, str(theirs.fileno()), str(log)]
            self._child = ChildGroup(command, out, environment, [theirs.fileno()])
        self._pipe = Connection(ours.detach())
        with suppress(BrokenPipeError, ConnectionResetError):  # `ready` reports a dead child
            self._pipe.send(spec)

    def ready(self) -> "EngineProcess":
        """Waits until the model is loaded; raises EnvironmentProblem with the log's end if not."""
        if self._context_length is None:
            try:
                self._deadline.begin(self._spec.config.start_timeout)
                self._context_length = int(self._receive())
            except BaseException:
                self.kill()  # it may take minutes to load
                self.close()
                raise
            self.seconds_to_start = time.monotonic() - self._started
        return self

    @property
    def context_length(self) -> int:
        self.ready()
        assert self._context_length is not None
        return self._context_length

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        return self._call("score", list(requests))

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        return self._call("loglikelihood", list(requests))

    def token_logprobs(self, requests: Sequence[TextRequest]) -> list[np.ndarray]:
        return self._call("token_logprobs", list(requests))

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        return self._call("generate", list(requests), sampling)

    def hidden_states(self, requests: Sequence[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
        """`TransformersEngine.hidden_states`; other engines have no such method."""
        return self._call("hidden_states", list(requests))

    def load_weights(self, path: Path) -> None:
        self._call("load_weights", path)

    def reset_cache(self) -> None:
        self._call("reset_cache")

    def _call(self, method: str, *arguments: Any) -> Any:
        self.ready()
        config, requests = self._spec.config, arguments[0] if arguments else []
        self._num_finished = 0.0
        if method == "load_weights":
            other = replace(self._spec, model_path=str(requests))
            self._describe = partial(not_started, other, self.log)
            self._deadline.begin(config.start_timeout)
        else:
            self._describe = partial(self._describe_requests, method, requests)
            self._deadline.begin(config.request_timeout)
        try:
            self._pipe.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError):
            raise self._death() from None
        return self._receive()

    def _describe_requests(self, method: str, requests: list[Any]) -> str:
        config = self._spec.config
        return no_request_finished(config, method, requests, self._num_finished, self.log)

    def _expired(self) -> None:
        """Ends a hanging child, which first writes its stacks to its log. Its call then fails."""
        self._hangs = self._describe()
        with suppress(ProcessLookupError):
            for number in (signal.SIGCONT, signal.SIGUSR2):
                os.kill(self._child.pid, number)
            time.sleep(_SECONDS_FOR_STACKS)
        self.kill()

    def _receive(self) -> Any:
        try:
            answer = self._next_answer()
        finally:
            self._deadline.end()
        if self._hangs:  # a stopped child was woken for its stacks, and is being ended
            raise self._death()
        return answer

    def _next_answer(self) -> Any:
        while True:
            try:
                kind, value = self._pipe.recv()
            except (EOFError, ConnectionResetError, pickle.UnpicklingError):
                raise self._death() from None
            if kind == _FAILURE:
                exit_code, message = value
                if exit_code == EXIT_USER:
                    raise IFTScaleError(message)
                raise EnvironmentProblem(
                    f"the inference engine failed: {message}\n{log_tail(self.log)}"
                )
            if kind == _ANSWER:
                return value
            if kind == _FINISHED:
                self._deadline.progress()
                self._num_finished += value
                self.finished(value)
            else:
                say(value)

    def _death(self) -> EnvironmentProblem:
        """Returns the error for a child that ended without an answer: EngineDied if unexpected."""
        try:
            code = self._child.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        self.kill()
        self._child.wait()
        if self._hangs:
            return EngineHangs(f"{self._hangs}.\n{log_tail(self.log)}")
        return EngineDied(f"the inference engine died (exit code {code})\n{log_tail(self.log)}")

    def kill(self) -> None:
        """Kills the child; a call that waits for it in another thread raises EngineDied."""
        self._child.kill()

    def close(self) -> None:
        """Ends the child by closing the pipe, or kills it; processes that it started end too."""
        self._deadline.close()
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=_SECONDS_TO_END)
        self.kill()
        self._child.wait()


class _ProgressReporter:
    """Sends the number of finished requests to the parent, at most twice per second."""

    def __init__(self, pipe: Connection):
        self._pipe, self._count, self._sent = pipe, 0.0, time.monotonic()

    def add(self, count: float) -> None:
        self._count += count
        if time.monotonic() - self._sent >= _SECONDS_BETWEEN_COUNTS:
            self._pipe.send((_FINISHED, self._count))
            self.start()

    def start(self) -> None:
        """Resets the count; the answer itself reports what was not sent."""
        self._count, self._sent = 0.0, time.monotonic()


class _WarningForwarder(logging.Handler):
    """Forwards each distinct engine warning once to the user; the log file has them all."""

    def __init__(self, pipe: Connection):
        super().__init__(logging.WARNING)
        self._pipe = pipe
        self._passed_on: set[str] = set()  # loading other weights repeats the same warnings

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        print(message, flush=True)
        if message not in self._passed_on:
            self._passed_on.add(message)
            self._pipe.send((_NOTE, f"engine: {message}"))


def serve(pipe: Connection) -> None:
    """Runs the child: builds the first message's engine, then answers until the pipe closes."""
    try:
        import torch

        spec = pipe.recv()
        logging.getLogger("ift_scale.engines").addHandler(_WarningForwarder(pipe))
        engine, counts = build(spec, torch.cuda.is_available()), _ProgressReporter(pipe)
        engine.finished = counts.add
        pipe.send((_ANSWER, engine.context_length))
        while True:
            method, arguments = pipe.recv()
            counts.start()
            pipe.send((_ANSWER, getattr(engine, method)(*arguments)))
    except EOFError:
        return  # the parent closed its end
    except BaseException as error:
        traceback.print_exc()
        if type(error).__name__ == "EngineDeadError":
            return  # vLLM lost a tensor-parallel worker; the parent sees a death and restarts
        message = (
            str(error) if isinstance(error, IFTScaleError) else f"{type(error).__name__}: {error}"
        )
        pipe.send((_FAILURE, (getattr(error, "exit_code", EXIT_ENVIRONMENT), message)))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    print_on_signal()  # the parent asks for it before it ends an engine that hangs
    serve(Connection(int(sys.argv[1])))
    # vLLM's threads can keep the interpreter alive at exit, and nothing is left to save.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
