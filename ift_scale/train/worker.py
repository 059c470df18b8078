"""What every rank runs: join the group once, then train all arms of the job with it.

Either started as `python -m ift_scale.train.worker JOB` by a launcher that `ift-scale train` has started and follows, or `serve` is
called by `ift-scale train` itself where a launcher (srun, torchrun, deepspeed) has started that once a rank. (Arguments rather than
variables: the deepspeed launcher does not hand unknown variables on to other nodes.)
"""

import os
import shutil
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

_started = time.monotonic()

import click  # noqa: E402
import deepspeed  # noqa: E402  (the imports are timed)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from ift_scale.config import TrainConfig  # noqa: E402
from ift_scale.engines.model_folder import model_config  # noqa: E402
from ift_scale.errors import EXIT_STOPPED, IFTScaleError, Stopped  # noqa: E402
from ift_scale.estimate import auto, host  # noqa: E402
from ift_scale.estimate.shape import ModelShape  # noqa: E402
from ift_scale.io.files import atomic_folder  # noqa: E402
from ift_scale.io.manifests import file_digest, write_manifest  # noqa: E402
from ift_scale.prompts.tokenizer import PromptTokenizer  # noqa: E402
from ift_scale.ranks import environment  # noqa: E402
from ift_scale.ranks.environment import Ranks  # noqa: E402
from ift_scale.ranks.heartbeat import Heartbeat  # noqa: E402
from ift_scale.ranks.rendezvous import Rendezvous, meet  # noqa: E402
from ift_scale.train import job, loop  # noqa: E402
from ift_scale.train.data import dataset  # noqa: E402
from ift_scale.train.engine import export_tokenizer, zero_config  # noqa: E402
from ift_scale.train.engine.checkpoint import Checkpoints  # noqa: E402
from ift_scale.train.engine.deepspeed import Engine  # noqa: E402
from ift_scale.train.engine.export import export  # noqa: E402
from ift_scale.train.launch import extensions  # noqa: E402
from ift_scale.train.launch.control import Control, Interrupted  # noqa: E402
from ift_scale.train.live.evaluator import Live  # noqa: E402
from ift_scale.train.model import packed as models  # noqa: E402
from ift_scale.train.monitor import throughput  # noqa: E402
from ift_scale.train.monitor.metrics import StepLog  # noqa: E402
from ift_scale.train.monitor.trackers import Trackers  # noqa: E402

_imported = time.monotonic()

COLLECTIVE_TIMEOUT = timedelta(minutes=float(os.environ.get("DEEPSPEED_TIMEOUT", "30")))
"""Until a collective that hangs is given up; ranks that have gone are missed sooner, by the watch."""


def join(rendezvous: Rendezvous) -> torch.device:
    """Join the process group at the ranks' meeting, once a process: NCCL on GPUs, gloo on CPUs."""
    ranks = rendezvous.ranks
    extensions.prepare(ranks.local_rank)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        local_rank = ranks.local_rank if torch.cuda.device_count() > 1 else 0
        os.environ["LOCAL_RANK"] = str(
            local_rank
        )  # DeepSpeed reads it; srun may show each task just its own device
        torch.cuda.set_device(local_rank)
    else:
        # DeepSpeed would compile a shared-memory all-reduce here (half a minute, and a crash without a compiler).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            beside = (
                ranks.local_size if ranks.local_size > 1 else ranks.world_size
            )  # a launcher that does not say has one node
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // beside))
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


def settled(
    work: job.Job, ranks: Ranks, device: torch.device, control: Control, events: job.Events
) -> TrainConfig:
    """The settings without `auto` for what the memory model decides: the same on all ranks, by the smallest device and host."""
    on_gpu = device.type == "cuda"
    device_bytes = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0
    found = control.gather((device_bytes, socket.gethostname(), host.available(), host.own()))
    names = [name for _, name, _, _ in found]
    per_node = Counter(names)
    taken = {name: sum(own for _, node, _, own in found if node == name) for name in per_node}
    left = min(
        left + taken[name] for _, name, left, _ in found
    )  # what the ranks have taken already is theirs
    smallest = min(size for size, *_ in found) if on_gpu else None
    train = work.train
    if train.hpz == "auto" and not auto.whole_nodes(names):
        train = train.model_copy(update={"hpz": "off"})
    room = auto.Room(smallest, ranks.world_size, max(per_node.values()), left)
    tokens = None if on_gpu else job.most_tokens(work, ranks.world_size)
    shape = ModelShape.from_config(model_config(Path(work.model_path)))
    config, said = auto.resolve(train, shape, room, tokens)
    if said:
        events.note(said)
    return config


def train_arm(
    work: job.Job,
    arm: job.ArmJob,
    group: loop.Group,
    tokenizer: PromptTokenizer,
    events: job.Events,
) -> None:
    """Train and export one arm; its folder appears whole, on rank 0, or not at all."""
    events.emit("arm", name=arm.arm.name)
    is_rank_zero = group.ranks.rank == 0
    with atomic_folder(Path(arm.folder)) if is_rank_zero else nullcontext() as temporary:
        tokens = dataset.load(Path(arm.tokens))
        rows = temporary / "metrics.jsonl" if temporary else None
        checkpoints = Checkpoints(arm, work.train, group.control, rows)

        def log(engine: Engine, num_steps: int) -> tuple[StepLog, Live]:
            meter = meter_of(work, tokens, group, engine.packed.pruned, events)
            trackers = Trackers(
                work.train.trackers if is_rank_zero else [], Path(work.logs), events.note
            )
            trackers.start(
                arm.arm.name,
                {
                    "model": work.model_path,
                    "template": work.template,
                    "train": work.train.model_dump(),
                },
            )
            steps = StepLog(
                rows, events, num_steps, meter, trackers, work.train.log_every, group.device
            )
            told = temporary, events, group.base_answers
            return steps, Live(
                arm.live, work.train.live, engine, group.control, num_steps, work.hidden_size, *told
            )

        with _kept_on_failure(rows, Path(work.logs) / f"{arm.arm.name}-metrics.jsonl"):
            engine, trained = loop.train(work, arm, tokens, group, log, checkpoints)
        started = time.monotonic()
        dtype = zero_config.precision_of(work.train, group.device)
        exported = export_tokenizer.publish(tokenizer, work.template, engine.packed.model.config)
        target = temporary / "model" if temporary else None
        peak = export(
            engine.packed.model,
            work.train.zero_stage == 3,
            target,
            Path(work.model_path),
            exported,
            dtype,
        )
        trained.counts["export_peak_bytes"] = peak
        engine.release()
        if target and temporary:
            export_tokenizer.check(target, tokenizer, work.template, [Path(arm.source)])
            trained.seconds["export"] = time.monotonic() - started
            config = {
                "train": work.train.model_dump(),
                "template": work.template,
                "arm": arm.arm.model_dump(),
            }
            write_manifest(
                temporary, "train", arm.key, config, arm.inputs, trained.counts, trained.seconds
            )
    checkpoints.remove()
    group.control.barrier()
    events.emit("done", name=arm.arm.name, seconds=trained.seconds)


@contextmanager
def _kept_on_failure(rows: Path | None, copy: Path) -> Iterator[None]:
    """What the metrics file of an arm tells of a failure stays, although the arm's half-made folder goes."""
    try:
        yield
    except Exception:
        if rows is not None and rows.is_file():
            shutil.copyfile(rows, copy)
        raise


def meter_of(
    work: job.Job, tokens: dataset.TokenizedSet, group: loop.Group, pruned: bool, events: job.Events
) -> throughput.Meter:
    """What counts an arm's steps; where MFU cannot be told, why is noted."""
    shape = ModelShape.from_config(model_config(Path(work.model_path)))
    peak, no_peak = throughput.peak_of(
        work.train, group.device, zero_config.precision_of(work.train, group.device)
    )
    if no_peak:
        events.note(no_peak)
    return throughput.Meter(
        tokens,
        work.hidden_size,
        group.ranks.world_size,
        shape,
        pruned,
        work.train.share_prefix,
        peak,
    )


def train_arms(
    work: job.Job, group: loop.Group, tokenizer: PromptTokenizer, events: job.Events
) -> None:
    """Train the arms one after another. Interrupted, after saving, where the ranks shall stop."""
    for arm in work.arms:
        try:
            if group.control.stops():
                raise Interrupted(0)
            train_arm(work, arm, group, tokenizer, events)
        except Interrupted as stopped:
            events.emit("stopped", name=arm.arm.name, step=stopped.step)
            raise Interrupted(stopped.step, arm.arm.name) from None


def serve(work: job.Job, rendezvous: Rendezvous, events: job.Events) -> None:
    """Train the arms of a job as one of the ranks that have met. Interrupted on all of them where they shall stop, after saving.

    A rank that fails ends its process, and the others follow within seconds: merely raising, it would wait for them in NCCL's or
    gloo's teardown.
    """
    ranks, watch, stopped = rendezvous.ranks, None, None
    try:
        joining = time.monotonic()
        watch = Heartbeat(rendezvous, events.failed)
        device = join(rendezvous)
        events.emit(
            "joined",
            imports=_imported - _started,
            join=time.monotonic() - joining,
            world_size=ranks.world_size,
        )
        tokenizer = PromptTokenizer(work.model_path)
        control = Control(Path(work.stop_file) if work.stop_file else None, COLLECTIVE_TIMEOUT)
        work = work.model_copy(update={"train": settled(work, ranks, device, control, events)})
        group = loop.Group(ranks, device, models.read_weights(Path(work.model_path)), control)
        try:
            train_arms(work, group, tokenizer, events)
        except Interrupted as error:
            stopped = error
        control.barrier()  # nobody leaves while another may still look whether he is there
        watch.close()
        control.close()
    except BaseException as error:
        end(error, ranks, events, watch)
    if stopped is not None:
        raise stopped


def end(
    error: BaseException, ranks: Ranks, events: job.Events, watch: Heartbeat | None = None
) -> NoReturn:
    """Tell what has gone wrong, first here, then in the events and to the other ranks, and leave at once."""
    message = str(error) if isinstance(error, IFTScaleError) else f"{type(error).__name__}: {error}"
    print(
        f"Error: rank {ranks.rank} on {socket.gethostname()}: {message}",
        file=sys.stderr,
        flush=True,
    )
    if not isinstance(error, IFTScaleError | Stopped):
        traceback.print_exception(error)
    events.failed(ranks.rank, message)
    if watch is not None:
        watch.fail(message)
    sys.stdout.flush()
    os._exit(getattr(error, "exit_code", 1))


@click.command()
@click.argument("job_path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--events",
    "events_path",
    type=click.Path(path_type=Path),
    help="File that the progress is appended to.",
)
@click.option("--supervisor", help="HOST:PID of the process whose end ends this one.")
def main(job_path: Path, events_path: Path | None, supervisor: str | None) -> None:
    """Train the arms of JOB_PATH as one rank of a group that a launcher has started."""
    ranks = environment.from_environment()
    if ranks is None:
        raise click.UsageError(
            "RANK and WORLD_SIZE are not set: start this module by a launcher, such as deepspeed or torchrun"
        )
    if supervisor:
        environment.end_with_supervisor(supervisor)
    events = job.Events(events_path, writes=ranks.is_rank_zero)
    try:
        rendezvous = meet(ranks)
        rendezvous.check(file_digest(job_path), job_path.parent)
        serve(job.read(job_path), rendezvous, events)
    except Interrupted:
        sys.stdout.flush()
        os._exit(EXIT_STOPPED)
    except Exception as error:
        end(error, ranks, events)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
