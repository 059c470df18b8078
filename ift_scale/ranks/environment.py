"""Who this process is among the ranks, whatever launcher started it, and what ends it when the run that started it is gone.

deepspeed and torchrun put RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT into the environment; srun has variables of its
own, from which `settle` makes the same. So all that is behind it (torch, DeepSpeed) finds one environment.
"""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ift_scale.errors import EnvironmentProblem

_WATCH_SECONDS = 1.0


# Ports that srun's jobs meet at: below the range that systems deal out by themselves.
_FIRST_PORT, _NUM_PORTS = 10_000, 20_000


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world_size`, `local_rank` on its node."""

    rank: int
    local_rank: int
    world_size: int
    local_size: int = 1
    """Ranks on this node."""
    watch: Callable[[], None] | None = None
    """Called often while shared work goes on; raises where it shall end."""
    engines_elsewhere: Literal["cpu", "gpu"] | None = None
    """Set where this process has no engines and only leads ranks that have: what theirs run on."""

    @property
    def leads(self) -> bool:
        return self.rank == 0


def from_environment() -> Ranks | None:
    """The place that a launcher (deepspeed, torchrun, srun) has put into the environment; None outside of one."""
    found = os.environ
    if "RANK" in found and "WORLD_SIZE" in found:
        local_size = int(
            found.get("LOCAL_WORLD_SIZE") or found.get("LOCAL_SIZE") or _slurm_tasks_per_node() or 1
        )
        return Ranks(
            int(found["RANK"]),
            int(found.get("LOCAL_RANK", "0")),
            int(found["WORLD_SIZE"]),
            local_size,
        )
    if (
        "SLURM_STEP_NUM_TASKS" in found
    ):  # set by srun for its tasks; a batch script by itself has none
        size = int(found["SLURM_STEP_NUM_TASKS"])
        return Ranks(
            int(found["SLURM_PROCID"]),
            int(found.get("SLURM_LOCALID", "0")),
            size,
            _slurm_tasks_per_node() or size,
        )
    return None


def _slurm_tasks_per_node() -> int | None:
    """From "4" or "4(x2),3"; the first node's is as good as any for dividing a node's devices. None outside of a step."""
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    return int(text.split("(")[0].split(",")[0]) if text else None


def settle(ranks: Ranks) -> tuple[str, int]:
    """Put this process's place and the leader's address into the environment, as torch and DeepSpeed read them.

    Returns the host and port that the ranks meet at. EnvironmentProblem where srun's node list does not lead to an address.
    """
    found = os.environ
    if "MASTER_ADDR" not in found:
        found["MASTER_ADDR"] = _first_node() if ranks.world_size > 1 else "127.0.0.1"
    _check_address(found["MASTER_ADDR"])
    if "MASTER_PORT" not in found:
        found["MASTER_PORT"] = str(_slurm_port() if "SLURM_JOB_ID" in found else free_port())
    found["RANK"], found["WORLD_SIZE"] = str(ranks.rank), str(ranks.world_size)
    found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"] = str(ranks.local_rank), str(ranks.local_size)
    return found["MASTER_ADDR"], int(found["MASTER_PORT"])


def _slurm_port() -> int:
    """The same in all tasks of a step, another one for other jobs and steps on the same node."""
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
    return _FIRST_PORT + (job * 101 + step) % _NUM_PORTS


def _first_node() -> str:
    """Name of the node of rank 0, by srun's node list."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    remedy = (
        "Export MASTER_ADDR (the host of rank 0) before the ranks start, as launch/slurm.sh does"
    )
    if not nodes:
        raise EnvironmentProblem(
            f"MASTER_ADDR is not set, and there is no node list of SLURM's. {remedy}."
        )
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(
            f"scontrol, which spells out the node list {nodes}, does not run here ({error}). {remedy}."
        ) from None
    names = done.stdout.split()
    if done.returncode or not names:
        raise EnvironmentProblem(
            f"scontrol cannot spell out the node list {nodes}: {done.stderr.strip()}. {remedy}."
        )
    return names[0]


def _check_address(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
        of = f" (of the job's nodes {nodes})" if nodes else ""
        raise EnvironmentProblem(
            f"{host}{of}, where the ranks shall meet, has no address that {socket.gethostname()} can find ({error.strerror}). "
            "Export MASTER_ADDR, an address of the node of rank 0, before the ranks start (in IFT_SCALE_SETUP for launch/)."
        ) from None


def visible_devices() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    if not has_gpu():
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name for name in named.split(",") if name)
    return tuple(str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


def own_devices(ranks: Ranks | None, at_least: int) -> tuple[str, ...]:
    """This rank's part of its node's devices, or all that it sees where SLURM shows each task only its own.

    EnvironmentProblem where the node's ranks have fewer than `at_least` devices each.
    """
    devices = visible_devices()
    if not devices or ranks is None or ranks.local_size == 1:
        return devices
    private = (
        "SLURM_GPUS_PER_TASK" in os.environ
        or "gpu" in os.environ.get("SLURM_TRES_PER_TASK", "")
        or len(devices) == at_least
    )
    if private:
        return devices
    each = len(devices) // ranks.local_size
    if each < at_least:
        raise EnvironmentProblem(
            f"{ranks.local_size} ranks on this node share {len(devices)} GPUs and need {at_least} each. Start fewer ranks a node, "
            "or lower tensor_parallel_size."
        )
    return devices[ranks.local_rank * each : (ranks.local_rank + 1) * each]


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


def engines_on_gpu(ranks: Ranks | None) -> bool:
    """Whether the engines of a shared stage run on GPUs: this process' own, or those that it leads."""
    return (
        has_gpu()
        if ranks is None or ranks.engines_elsewhere is None
        else ranks.engines_elsewhere == "gpu"
    )


def free_port() -> int:
    """A TCP port that is free on this host just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
