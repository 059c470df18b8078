"""This process's rank and address of rank 0, for any launcher, and the supervision of ranks.

deepspeed and torchrun set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun has
variables of its own, from which `resolve_environment` derives the same ones. torch and DeepSpeed
thus see the same environment in all cases.
"""

import ipaddress
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ift_scale.errors import EnvironmentProblem

SECRET = "IFT_SCALE_LAUNCH_SECRET"
_POLL_SECONDS = 1.0


# Ports for the rendezvous of ranks, below the range of automatically assigned ports.
_FIRST_PORT, _NUM_PORTS = 10_000, 20_000


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks: `rank` of `world_size`, `local_rank` on its node."""

    rank: int
    local_rank: int
    world_size: int
    local_size: int = 1
    """Number of ranks on this node."""
    watch: Callable[[], None] | None = None
    """Called often during shared work; raises to end it."""
    engines_elsewhere: Literal["cpu", "gpu"] | None = None
    """Set on a process without engines that only coordinates other ranks: the device of theirs."""

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0


def from_environment() -> Ranks | None:
    """Returns the rank assigned by a launcher (deepspeed, torchrun, srun), or None without one."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        local_size = (
            env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or _slurm_tasks_per_node() or 1
        )
        return Ranks(
            int(env["RANK"]),
            int(env.get("LOCAL_RANK", "0")),
            int(env["WORLD_SIZE"]),
            int(local_size),
        )
    # srun sets this variable for its tasks; a batch script itself does not have it.
    if "SLURM_STEP_NUM_TASKS" in env:
        size = int(env["SLURM_STEP_NUM_TASKS"])
        return Ranks(
            int(env["SLURM_PROCID"]),
            int(env.get("SLURM_LOCALID", "0")),
            size,
            _slurm_tasks_per_node() or size,
        )
    return None


def _slurm_tasks_per_node() -> int | None:
    """Returns the first node's tasks from a text such as "4" or "4(x2),3"; None outside a step.

    The number is only used to divide a node's devices, for which any node's is good enough.
    """
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    return int(text.split("(")[0].split(",")[0]) if text else None


def resolve_environment(ranks: Ranks) -> tuple[str, int]:
    """Sets the environment variables that torch and DeepSpeed read for this rank.

    Returns the host and port of the rendezvous. Raises EnvironmentProblem if srun's node list does
    not lead to an address.
    """
    env = os.environ
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = _first_node() if ranks.world_size > 1 else "127.0.0.1"
    _check_address(env["MASTER_ADDR"])
    if "MASTER_PORT" not in env:
        env["MASTER_PORT"] = str(_slurm_port() if "SLURM_JOB_ID" in env else free_port())
    env["RANK"], env["WORLD_SIZE"] = str(ranks.rank), str(ranks.world_size)
    env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"] = str(ranks.local_rank), str(ranks.local_size)
    return env["MASTER_ADDR"], int(env["MASTER_PORT"])


def _slurm_port() -> int:
    """Returns a port that all tasks of a step agree on and that differs between jobs and steps."""
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
    return _FIRST_PORT + (job * 101 + step) % _NUM_PORTS


def _first_node() -> str:
    """Returns the name of rank 0's node, the first in srun's node list."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    remedy = (
        "Export MASTER_ADDR (the host of rank 0) before the ranks start, as launch/slurm.sh does"
    )
    if not nodes:
        raise EnvironmentProblem(
            f"MASTER_ADDR is not set, and SLURM has set no node list. {remedy}."
        )
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(
            f"scontrol, which expands the node list {nodes}, cannot be run ({error}). {remedy}."
        ) from None
    names = done.stdout.split()
    if done.returncode or not names:
        raise EnvironmentProblem(
            f"scontrol cannot expand the node list {nodes}: {done.stderr.strip()}. {remedy}."
        )
    return names[0]


def _check_address(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
        of = f" (of the job's nodes {nodes})" if nodes else ""
        raise EnvironmentProblem(
            f"{host}{of}, the host of the rendezvous, has no address that {socket.gethostname()} "
            f"can resolve ({error.strerror}). Export MASTER_ADDR, an address of the node of rank 0,"
            " before the ranks start (in IFT_SCALE_SETUP for launch/)."
        ) from None


def is_loopback(host: str) -> bool:
    """True if a host has an address of the loopback interface here."""
    *_, address = socket.getaddrinfo(host, None)[0]
    return ipaddress.ip_address(str(address[0])).is_loopback


def visible_devices() -> tuple[str, ...]:
    """Returns the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    if not has_gpu():
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name for name in named.split(",") if name)
    return tuple(str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


def own_devices(ranks: Ranks | None, at_least: int) -> tuple[str, ...]:
    """Returns this rank's share of its node's devices.

    Where SLURM or Ray shows each rank only its own devices, these are all that are visible. Raises
    EnvironmentProblem if the node's ranks have fewer than `at_least` devices each.
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
            f"{ranks.local_size} ranks on this node share {len(devices)} GPUs and need {at_least} "
            "each. Start fewer ranks per node, or lower tensor_parallel_size."
        )
    return devices[ranks.local_rank * each : (ranks.local_rank + 1) * each]


def supervisor_mark() -> str:
    """Returns an identifier of this process for `end_with_supervisor` in the ranks it starts."""
    return f"{socket.gethostname()}:{os.getpid()}"


def end_with_supervisor(mark: str) -> None:
    """In a rank that ssh started: ends this process when the supervising process is gone, even if
    that was killed with -9.

    Only on the supervisor's own host. Ranks on other hosts then notice that this one is gone.
    """
    host, _, pid = mark.rpartition(":")
    if host == socket.gethostname():
        threading.Thread(target=_watch, args=(int(pid),), daemon=True).start()


def _watch(pid: int) -> None:
    while _is_running(pid):
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _is_running(pid: int) -> bool:
    """True if the process exists and is not a zombie, which its parent has yet to collect."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


def has_gpu() -> bool:
    """True if this host has NVIDIA devices and a torch that can use them; does not import torch."""
    return "+cpu" not in metadata.version("torch") and any(Path("/dev").glob("nvidia[0-9]*"))


def engines_on_gpu(ranks: Ranks | None) -> bool:
    """True if the engines of a shared stage run on GPUs: this process's, or those of its ranks."""
    return (
        has_gpu()
        if ranks is None or ranks.engines_elsewhere is None
        else ranks.engines_elsewhere == "gpu"
    )


def local_launch(num_ranks: int, port: int) -> dict[str, str]:
    """Returns the variables of ranks started on this node, with a new secret.

    Each rank also needs RANK and LOCAL_RANK.
    """
    return {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        SECRET: new_secret(),
    }


def new_secret() -> str:
    """Returns a secret for one launch, which its ranks get in the variable `SECRET`.

    Only the same user and root can read a process's variables, but everyone its command line.
    """
    return secrets.token_hex(32)


def free_port() -> int:
    """Returns a TCP port that is currently free on this host.

    It is random and below the range of automatically assigned ports, so that hardly any other
    program takes it before it is used.
    """
    for _ in range(_NUM_PORTS):
        port = _FIRST_PORT + secrets.randbelow(_NUM_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise EnvironmentProblem(
        f"no port from {_FIRST_PORT} to {_FIRST_PORT + _NUM_PORTS - 1} is free on this host. End "
        "the programs that occupy them."
    )
