"""Ranks of a test that run a few lines of code, forked from a process that has imported torch."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

from ift_scale.ranks.environment import free_port
from tests.waiting import LIMIT_SECONDS, wait_for

RANK = """
import os, sys, time
os.environ.update({environment})
for stream in (1, 2):
    os.dup2(os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
from pathlib import Path
from ift_scale.ranks import heartbeat, rendezvous
from ift_scale.ranks.environment import from_environment
from ift_scale.errors import IFTScaleError
heartbeat.BEAT_SECONDS, heartbeat.MISSED_BEATS = 0.2, 25
rendezvous.GRACE_SECONDS, rendezvous.JOIN_SECONDS = 0.2, 4
ranks, folder = from_environment(), Path({log!r}).parent
try:
    {body}
except IFTScaleError as error:
    print(f"Error: {{error}}", flush=True)
    sys.exit(error.exit_code)
"""


class ForkedRank:
    """A rank that runs `body`, forked from a process that has imported torch to save time."""

    def __init__(self, folder: Path, body: str, rank: int, world_size: int, port: int):
        self.log = folder / f"{rank}.log"
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_PORT": port,
        }
        environment = {name: str(value) for name, value in variables.items()} | {
            "MASTER_ADDR": "127.0.0.1"
        }
        code = RANK.format(
            environment=environment,
            log=str(self.log),
            body="\n    ".join(body.strip().splitlines()),
        )
        self.process = _FORKS.Process(target=exec, args=(code, {}))
        self.process.start()

    def end(self, seconds: float = LIMIT_SECONDS) -> tuple[int | None, str]:
        """Returns (exit code, output)."""
        self.process.join(seconds)
        self.process.kill()
        return self.process.exitcode, self.log.read_text()

    def wait_for(self, text: str) -> None:
        wait_for(lambda: self.log.is_file() and text in self.log.read_text(), self.log)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch.distributed", "ift_scale.ranks.heartbeat"])


def start(
    folder: Path,
    body: str,
    world_size: int,
    ranks: Sequence[int] | None = None,
    port: int | None = None,
) -> list[ForkedRank]:
    port = port or free_port()
    return [
        ForkedRank(folder, body, rank, world_size, port)
        for rank in (range(world_size) if ranks is None else ranks)
    ]


def end_all(
    started: list[ForkedRank], seconds: float = LIMIT_SECONDS
) -> list[tuple[int | None, str]]:
    return [rank.end() for rank in started]
