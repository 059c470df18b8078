"""Start a group of ranks, follow it, and end all of it whatever happens.

The deepspeed launcher's exit code is not believed (it is 0 when its child launcher was killed): the group has succeeded when every
arm's artifact stands. Rank 0's event file tells how far it is.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_scale.config import TrainConfig
from ift_scale.errors import EnvironmentProblem
from ift_scale.io.files import log_tail
from ift_scale.ranks import environment
from ift_scale.train.launch import extensions, hostfile

RANK_MODULE = "ift_scale.train.worker"
_POLL_SECONDS = 0.1


def commands(
    config: TrainConfig, port: int, arguments: list[str]
) -> list[tuple[list[str], dict[str, str | None]]]:
    """(command, changes of the environment, None to unset) of each process to start: the launcher, or the ranks themselves."""
    if config.launcher == "direct":
        place: dict[str, str | None] = {
            "WORLD_SIZE": str(config.num_ranks),
            "LOCAL_WORLD_SIZE": str(config.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-m", RANK_MODULE, *arguments]
        return [
            (command, place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(config.num_ranks)
        ]
    command = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--master_port",
        str(port),
        "--no_local_rank",
    ]
    changes: dict[str, str | None] = {}
    if config.hostfile:
        command += ["--hostfile", config.hostfile]
        if not all(map(hostfile.is_here, hostfile.read(Path(config.hostfile)))):
            command += [
                "--force_multi"
            ]  # else a single host, wherever it is, would be taken for this one
        if "MASTER_ADDR" in os.environ:  # else DeepSpeed asks the first host over ssh
            command += ["--master_addr", os.environ["MASTER_ADDR"]]
    else:
        # Without this DeepSpeed reads /job/hostfile where there is one; this run is for this node only.
        command += ["--hostfile", os.devnull]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible:
            # With --num_gpus DeepSpeed drops the variable and takes the first devices; it must be told them by name.
            chosen = ",".join(visible.split(",")[: config.num_ranks])
            command += ["--include", f"localhost:{chosen}"]
            changes["CUDA_VISIBLE_DEVICES"] = None
        else:
            command += [
                "--num_accelerators",
                str(config.num_ranks),
                "--num_gpus",
                str(config.num_ranks),
            ]
    return [([*command, "--module", RANK_MODULE, *arguments], changes)]


class Group:
    """The started processes, in one session of their own so that all of them can be ended together."""

    def __init__(self, config: TrainConfig, job_path: Path, events: Path, log: Path):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [
            str(job_path.resolve()),
            "--events",
            str(events.resolve()),
            "--supervisor",
            environment.supervisor_mark(),
        ]
        shared = {
            "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", _accelerator()),
            "TORCH_EXTENSIONS_DIR": str(extensions.folder()),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if config.hostfile:
            variables = job_path.with_name(".deepspeed_env").resolve()
            hostfile.write_environment(variables, shared)
            shared["DS_ENV_FILE"] = str(variables)
        with log.open("w", encoding="utf-8") as out:
            self._processes = []
            for command, changes in commands(config, environment.free_port(), arguments):
                merged: dict[str, str | None] = {**os.environ, **shared, **changes}
                variables_of_child = {
                    name: value for name, value in merged.items() if value is not None
                }
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env=variables_of_child,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def failed(self) -> bool:
        return any(process.poll() not in (None, 0) for process in self._processes)

    def end(self, grace: float = 5.0) -> None:
        """End every process of the group: SIGTERM, then SIGKILL after `grace` seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + grace
            while self.running() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)


def _accelerator() -> str:
    """Told to DeepSpeed, so that it does not have to guess (and warn)."""
    return "cuda" if environment.has_gpu() else "cpu"


def read(events: Path, position: int = 0) -> Iterator[dict[str, Any]]:
    """The whole lines of an event file from `position` on, each with the position behind it."""
    if not events.exists():
        return
    with events.open(encoding="utf-8") as file:
        file.seek(position)
        for line in iter(file.readline, ""):
            if not line.endswith("\n"):
                return
            yield json.loads(line) | {"position": file.tell()}


def follow(group: Group, events: Path) -> Iterator[dict[str, Any]]:
    """Events as they come, until the group has ended. EnvironmentProblem as soon as a rank reports an error or dies.

    Ranks that say that they have stopped may end with any code: theirs is 75, a launcher makes it another.
    """
    position, stopped = 0, False
    while True:
        # Before the events are read: what a process wrote before it ended is then seen.
        running, failed = group.running(), group.failed()
        for event in read(events, position):
            position = event["position"]
            if event["event"] == "error":
                raise EnvironmentProblem(
                    f"rank {event['rank']} failed: {event['message']}\n{log_tail(group.log)}"
                )
            stopped = stopped or event["event"] == "stopped"
            yield event
        if failed and not stopped:
            raise EnvironmentProblem(
                f"a training process ended with an error\n{log_tail(group.log)}"
            )
        if not running:
            return
        time.sleep(_POLL_SECONDS)
