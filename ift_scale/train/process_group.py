"""The process group of a launch: joining it, and settings on which all of its ranks agree."""

import atexit
import os
import socket
from collections import Counter
from datetime import timedelta
from functools import lru_cache

import deepspeed
import torch
import torch.distributed as dist

from ift_scale.config.train import TrainConfig
from ift_scale.estimate import auto, host
from ift_scale.ranks import heartbeat
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Rendezvous
from ift_scale.ranks.torch_store import TorchStore
from ift_scale.train import job
from ift_scale.train.launch import extensions
from ift_scale.train.launch.control import Control

_COLLECTIVE_MINUTES = 30.0


def collective_timeout(hang_timeout: float) -> timedelta:
    """Returns the time limit of a collective for `train.hang_timeout`.

    The heartbeat must end a hanging launch first: it names the rank that the others wait for.
    """
    if "DEEPSPEED_TIMEOUT" in os.environ:
        return timedelta(minutes=float(os.environ["DEEPSPEED_TIMEOUT"]))
    seconds = 2 * heartbeat.SLOW_FACTOR * hang_timeout
    return max(timedelta(minutes=_COLLECTIVE_MINUTES), timedelta(seconds=seconds))


def join(rendezvous: Rendezvous, hang_timeout: float = 0.0) -> torch.device:
    """Join the process group, once per process: NCCL on GPUs, gloo on CPUs. Returns the device."""
    ranks = rendezvous.ranks
    extensions.remove_stale_locks(ranks.local_rank)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        # srun may show each task only its own device, which then has index 0.
        local_rank = ranks.local_rank if torch.cuda.device_count() > 1 else 0
        os.environ["LOCAL_RANK"] = str(local_rank)  # read by DeepSpeed
        torch.cuda.set_device(local_rank)
    else:
        _prepare_cpu(ranks)
    if not dist.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        if rendezvous.on_loopback:  # gloo and NCCL would use the interface of the host's name
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        store, timeout = _store(rendezvous), collective_timeout(hang_timeout)
        dist.init_process_group(
            backend,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
        )
        atexit.register(leave)
        deepspeed.init_distributed(backend, timeout=timeout)
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")


@lru_cache(maxsize=1)
def _store(rendezvous: Rendezvous) -> TorchStore:
    """Returns the group's store. It is kept alive here: torch holds only its C++ half."""
    return TorchStore(rendezvous.store.another())


def leave() -> None:
    """Leaves the process group, if this process is in one.

    gloo's threads abort a process now and then that exits within its group ("terminate called
    without an active exception"), so that `join` registers this for the exit.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _prepare_cpu(ranks: Ranks) -> None:
    """Share the node's cores among its ranks and keep DeepSpeed from compiling an operator."""
    # Its shared-memory all-reduce takes half a minute to compile and crashes without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "OMP_NUM_THREADS" not in os.environ:
        # A launcher that does not set LOCAL_WORLD_SIZE has one node.
        per_node = ranks.local_size if ranks.local_size > 1 else ranks.world_size
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // per_node))


def resolve_auto(
    work: job.Job, ranks: Ranks, device: torch.device, control: Control, events: job.Events
) -> TrainConfig:
    """Returns the settings with every `auto` of the memory model replaced by a value.

    The smallest device and the host with the least memory decide, so all ranks get the same.
    """
    on_gpu = device.type == "cuda"
    device_bytes = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0
    machines = control.gather((device_bytes, socket.gethostname(), host.available(), host.own()))
    names = [name for _, name, _, _ in machines]
    per_node = Counter(names)
    # Memory that the ranks occupy already is available to them.
    used = {name: sum(own for _, node, _, own in machines if node == name) for name in per_node}
    available = min(free + used[name] for _, name, free, _ in machines)
    smallest = min(size for size, *_ in machines) if on_gpu else None
    train = work.train
    if train.hpz == "auto" and not auto.whole_nodes(names):
        train = train.model_copy(update={"hpz": "off"})
    room = auto.Room(smallest, ranks.world_size, max(per_node.values()), available)
    tokens = None if on_gpu else job.max_micro_batch_tokens(work, ranks.world_size)
    config, note = auto.resolve(train, work.shape, room, tokens)
    if note:
        events.note(note)
    return config
