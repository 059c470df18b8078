"""One rank of a launch: joins the process group once, then trains all arms of the job with it.

A rank is either a process of its own (`worker`, started by a launcher that `ift-scale train`
supervises), or `ift-scale train` itself if srun, torchrun or deepspeed started it once per rank.
"""

import os
import socket
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import deepspeed
import torch
import torch.distributed as dist

from ift_scale.config import TrainConfig
from ift_scale.engines.model_folder import model_config
from ift_scale.errors import EXIT_STOPPED, IFTScaleError, Stopped
from ift_scale.estimate import auto, host
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.manifests import file_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.rendezvous import Heartbeat, Rendezvous, meet
from ift_scale.train import job
from ift_scale.train.arm import train_arms
from ift_scale.train.launch import extensions
from ift_scale.train.launch.control import Control, Interrupted
from ift_scale.train.loop import TrainContext
from ift_scale.train.model.packed import read_weights

COLLECTIVE_TIMEOUT = timedelta(minutes=float(os.environ.get("DEEPSPEED_TIMEOUT", "30")))
"""Limit for a hanging collective. The heartbeat detects a rank that has died much sooner."""


def run_job_file(job_path: Path, events_path: Path | None, ranks: Ranks, imports: float) -> None:
    """Train the arms of a job file in this process. Does not return if the job fails or stops."""
    events = job.Events(events_path, writes=ranks.is_rank_zero)
    try:
        rendezvous = meet(ranks)
        rendezvous.check(file_digest(job_path), job_path.parent)
        run(job.read(job_path), rendezvous, events, imports)
    except Interrupted:
        sys.stdout.flush()
        os._exit(EXIT_STOPPED)
    except Exception as error:
        fail(error, ranks, events)
    dist.destroy_process_group()


def run(work: job.Job, rendezvous: Rendezvous, events: job.Events, imports: float) -> None:
    """Train the arms of `work` as one of the ranks of `rendezvous`.

    `imports`: seconds that the imports took, for the events. Raises Interrupted, on all ranks and
    after saving, if the ranks were asked to stop. A rank that fails ends its process, because an
    exception would make it wait for the others in the teardown of NCCL or gloo; the others follow
    within seconds.
    """
    ranks, heartbeat, stopped = rendezvous.ranks, None, None
    try:
        joining = time.monotonic()
        heartbeat = Heartbeat(rendezvous, events.failed)
        device = join(rendezvous)
        seconds = time.monotonic() - joining
        events.emit("joined", imports=imports, join=seconds, world_size=ranks.world_size)
        tokenizer = PromptTokenizer(work.model_path)
        control = Control(Path(work.stop_file) if work.stop_file else None, COLLECTIVE_TIMEOUT)
        # All ranks resolve `auto` to the same values, whatever devices they have.
        config = resolve_auto(work, ranks, device, control, events)
        work = work.model_copy(update={"train": config})
        context = TrainContext(ranks, device, read_weights(Path(work.model_path)), control)
        try:
            train_arms(work, context, tokenizer, events)
        except Interrupted as error:
            stopped = error
        # No rank leaves while another may still check that it is alive.
        control.barrier()
        heartbeat.close()
        control.close()
    except BaseException as error:
        fail(error, ranks, events, heartbeat)
    if stopped is not None:
        raise stopped


def join(rendezvous: Rendezvous) -> torch.device:
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
        store = dist.PrefixStore("group", rendezvous.store)  # type: ignore[attr-defined]
        dist.init_process_group(
            backend,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        deepspeed.init_distributed(backend, timeout=COLLECTIVE_TIMEOUT)
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")


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
    shape = ModelShape.from_config(model_config(Path(work.model_path)))
    config, note = auto.resolve(train, shape, room, tokens)
    if note:
        events.note(note)
    return config


def fail(
    error: BaseException, ranks: Ranks, events: job.Events, heartbeat: Heartbeat | None = None
) -> NoReturn:
    """Report the error in the log, in the events and to the other ranks, then end the process."""
    message = str(error) if isinstance(error, IFTScaleError) else f"{type(error).__name__}: {error}"
    print(
        f"Error: rank {ranks.rank} on {socket.gethostname()}: {message}",
        file=sys.stderr,
        flush=True,
    )
    if not isinstance(error, IFTScaleError | Stopped):
        traceback.print_exception(error)
    events.failed(ranks.rank, message)
    if heartbeat is not None:
        heartbeat.fail(message)
    sys.stdout.flush()
    os._exit(getattr(error, "exit_code", 1))
