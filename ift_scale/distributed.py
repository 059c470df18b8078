"""Who this process is among the ranks, and what ends it when the run that started it is gone."""

import os
import socket
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world_size`, `local_rank` on its node."""

    rank: int
    local_rank: int
    world_size: int


def from_environment() -> Ranks | None:
    """The place that a launcher (deepspeed, torchrun) has put into the environment; None outside of one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return Ranks(int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["WORLD_SIZE"]))


def supervisor_mark() -> str:
    """Names this process for `end_with_supervisor` in the ranks that it starts."""
    return f"{socket.gethostname()}:{os.getpid()}"


def end_with_supervisor(mark: str) -> None:
    """In a rank: end at once when the supervising process on this host has gone, even when it was killed with -9.

    DeepSpeed's launcher leaves its ranks behind in that case, and they would hold the devices for ever.
    """
    host, _, pid = mark.rpartition(":")
    if host == socket.gethostname():
        threading.Thread(target=_watch, args=(int(pid),), daemon=True).start()


def _watch(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(_WATCH_SECONDS)


def has_gpu() -> bool:
    """Whether this host's ranks will train on NVIDIA devices, told without importing torch (a CPU build never does)."""
    return "+cpu" not in metadata.version("torch") and any(Path("/dev").glob("nvidia[0-9]*"))


def free_port() -> int:
    """A TCP port that is free on this host just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
