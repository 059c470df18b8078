"""The time limits of an engine: for its start, and for each request of a chunk."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ift_scale.config.engines import EngineConfig
from ift_scale.engines.protocol import EngineSpec, ScoreRequest, TextRequest

_CHECKS = 20
_MOST_SECONDS = 1.0


class Deadline:
    """A thread that calls `expired` once if a call to an engine makes no progress for too long.

    `begin` and `end` surround a call. Time is counted in checks, so that an engine that is
    suspended together with this process is not ended when both continue.
    """

    def __init__(self, expired: Callable[[], None]):
        self._expired = expired
        self._limit, self._checks, self._closed = 0.0, 0, threading.Event()
        self._begun = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="engine deadline").start()

    def begin(self, seconds: float) -> None:
        """Starts the time; 0 for no limit."""
        self._checks, self._limit = 0, seconds
        if seconds:
            self._begun.set()

    def progress(self) -> None:
        """Starts the time again."""
        self._checks = 0

    def end(self) -> None:
        self._begun.clear()

    def close(self) -> None:
        self._closed.set()
        self._begun.set()

    def _run(self) -> None:
        while self._begun.wait() and not self._closed.is_set():
            pause = min(_MOST_SECONDS, self._limit / _CHECKS)
            if self._closed.wait(pause) or not self._begun.is_set():
                continue
            self._checks += 1
            if self._checks * pause >= self._limit:
                self._begun.clear()
                self._expired()


def not_started(spec: EngineSpec, log: Path) -> str:
    """Returns the message for an engine that has not started in time."""
    files = [*Path(spec.model_path).glob("*.safetensors")]
    gib = sum(file.stat().st_size for file in files) / (1 << 30)
    return (
        f"the engine did not start within start_timeout = {spec.config.start_timeout:g} s and was "
        f"ended. Model: {spec.model_path} ({gib:.1f} GiB of weights in {len(files)} files). Check "
        f"{log}, which ends with the engine's stacks, and how fast the weights can be read; a large"
        " model on a slow disk needs a longer start_timeout"
    )


def no_request_finished(
    config: EngineConfig,
    method: str,
    requests: Sequence[ScoreRequest | TextRequest],
    num_finished: float,
    log: Path,
) -> str:
    """Returns the message for an engine that has stopped to finish requests."""
    lengths = [len(request.prompt) for request in requests]
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=0)
    prompt = f", the longest prompt is request {longest} with {lengths[longest]} tokens"
    return (
        f"the engine finished no request for request_timeout = {config.request_timeout:g} s and was"
        f" ended. Call: {method}, about {num_finished:.0f} of {len(lengths)} requests were finished"
        f"{prompt if lengths else ''}. Check {log}, which ends with the engine's stacks, and the "
        "device (nvidia-smi, dmesg); very long prompts or answers need a longer request_timeout"
    )
