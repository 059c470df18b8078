"""Starts a group of ranks, follows its events, and ends all of it whatever happens.

The deepspeed launcher's exit code is not used: it is 0 even if its child launcher was killed. The
group has succeeded if every arm's artifact exists. Progress comes from rank 0's event file.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ift_scale.config.train import TrainConfig
from ift_scale.errors import EnvironmentProblem
from ift_scale.io.children import ChildGroup
from ift_scale.io.files import log_tail
from ift_scale.ranks import environment
from ift_scale.train.launch import extensions, hostfile

RANK_MODULE = "ift_scale.train.worker"
_POLL_SECONDS = 0.1


def commands(
    config: TrainConfig, port: int, arguments: list[str]
) -> list[tuple[list[str], dict[str, str | None]]]:
    """Returns (module and arguments, changes to the environment, None to unset) of each process.

    The processes are the launcher, or the ranks themselves if `train.launcher` is direct.
    """
    if config.launcher == "direct":
        changes: dict[str, str | None] = {**environment.local_launch(config.num_ranks, port)}
        return [
            ([RANK_MODULE, *arguments], changes | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(config.num_ranks)
        ]
    options, changes = _host_options(config) if config.hostfile else _local_options(config)
    launcher = ["deepspeed.launcher.runner", "--master_port", str(port)]
    command = [*launcher, "--no_local_rank", *options, "--module", RANK_MODULE, *arguments]
    return [(command, changes)]


def _host_options(config: TrainConfig) -> tuple[list[str], dict[str, str | None]]:
    assert config.hostfile is not None
    options = ["--hostfile", config.hostfile]
    if not all(map(hostfile.is_local, hostfile.read(Path(config.hostfile)))):
        options += ["--force_multi"]  # else DeepSpeed takes a single host for this one
    if "MASTER_ADDR" in os.environ:  # else DeepSpeed asks the first host over ssh
        options += ["--master_addr", os.environ["MASTER_ADDR"]]
    # Ranks on other hosts cannot be given a secret unseen: rank 0 writes it to the job's folder.
    return options, {environment.SECRET: None}


def _local_options(config: TrainConfig) -> tuple[list[str], dict[str, str | None]]:
    # This run is for this node only. DeepSpeed would otherwise read /job/hostfile if it exists.
    options = ["--hostfile", os.devnull]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    secret: dict[str, str | None] = {environment.SECRET: environment.new_secret()}
    if visible:
        # With --num_gpus DeepSpeed drops the variable and takes the first devices of the node.
        chosen = ",".join(visible.split(",")[: config.num_ranks])
        without = {"CUDA_VISIBLE_DEVICES": None}
        return [*options, "--include", f"localhost:{chosen}"], secret | without
    count = str(config.num_ranks)
    return [*options, "--num_accelerators", count, "--num_gpus", count], secret


class RankProcesses:
    """The started processes. They and all ranks on this host end with this process."""

    def __init__(self, config: TrainConfig, job_path: Path, events: Path, log: Path):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [str(job_path.resolve()), "--events", str(events.resolve())]
        shared = {
            "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", _accelerator()),
            "TORCH_EXTENSIONS_DIR": str(extensions.folder()),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if config.hostfile:
            # ssh starts these ranks, also those on this host, as children of its own server.
            arguments += ["--supervisor", environment.supervisor_mark()]
            variables = job_path.with_name(".deepspeed_env").resolve()
            hostfile.write_environment(variables, shared)
            shared["DS_ENV_FILE"] = str(variables)
        with log.open("w", encoding="utf-8") as out:
            self._processes = []
            for command, changes in commands(config, environment.free_port(), arguments):
                merged: dict[str, str | None] = {**os.environ, **shared, **changes}
                variables_of_child = {n: value for n, value in merged.items() if value is not None}
                self._processes.append(ChildGroup(command, out, variables_of_child))

    def running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def failed(self) -> bool:
        return any(process.poll() not in (None, 0) for process in self._processes)

    def end(self, grace: float = 5.0) -> None:
        """End every process and its children: SIGTERM, then SIGKILL after `grace` seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                process.signal(number)
            deadline = time.monotonic() + grace
            while self.running() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)


def _accelerator() -> str:
    """Returns the accelerator for DeepSpeed, which would otherwise guess and warn."""
    return "cuda" if environment.has_gpu() else "cpu"


def read(events: Path, position: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the complete events of a file from `position`, each with the position after it."""
    if not events.exists():
        return
    with events.open(encoding="utf-8") as file:
        file.seek(position)
        for line in iter(file.readline, ""):
            if not line.endswith("\n"):
                return
            with suppress(ValueError):  # a line that was cut by a full disk or a killed rank
                yield json.loads(line) | {"position": file.tell()}


def failure(event: Mapping[str, Any]) -> str:
    """Returns the message of an `error` event: of a rank, or of all without one."""
    if event["rank"] is None:
        return str(event["message"])
    return f"rank {event['rank']} failed: {event['message']}"


def follow(processes: RankProcesses, events: Path) -> Iterator[dict[str, Any]]:
    """Yields events as they come, until all processes have ended.

    Raises EnvironmentProblem as soon as a rank reports an error or dies. The exit code does not
    matter after a `stopped` event: ranks then exit with 75, which launchers change.
    """
    position, stopped = 0, False
    while True:
        # Checked before reading, so that events written just before a process ended are read.
        running, failed = processes.running(), processes.failed()
        for event in read(events, position):
            position = event["position"]
            if event["event"] == "error":
                raise EnvironmentProblem(f"{failure(event)}\n{log_tail(processes.log)}")
            stopped = stopped or event["event"] == "stopped"
            yield event
        if failed and not stopped:
            raise EnvironmentProblem(
                f"a training process ended with an error\n{log_tail(processes.log)}"
            )
        if not running:
            return
        time.sleep(_POLL_SECONDS)
