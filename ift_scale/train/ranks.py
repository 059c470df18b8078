"""What every rank runs: join the group once, then train all arms of the job with it.

Started as `python -m ift_scale.train.ranks JOB` by the deepspeed launcher, torchrun, or plain processes; RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT come from the launcher. (Arguments rather than variables: the launcher does not hand unknown
variables on to other nodes.)
"""

import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

_started = time.monotonic()

import click  # noqa: E402
import deepspeed  # noqa: E402  (the imports are timed)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from ift_scale import artifacts, distributed  # noqa: E402
from ift_scale.config import TrainConfig  # noqa: E402
from ift_scale.distributed import Ranks  # noqa: E402
from ift_scale.errors import EXIT_STOPPED  # noqa: E402
from ift_scale.inference.model_folder import model_config  # noqa: E402
from ift_scale.inference.tokens import PromptTokenizer  # noqa: E402
from ift_scale.train import data, job, loop, measures, setting, zero  # noqa: E402
from ift_scale.train import model as models  # noqa: E402
from ift_scale.train.checkpoint import Checkpoints  # noqa: E402
from ift_scale.train.control import Control, Interrupted  # noqa: E402
from ift_scale.train.engine import Engine  # noqa: E402
from ift_scale.train.export import export  # noqa: E402
from ift_scale.train.live import Live  # noqa: E402
from ift_scale.train.metrics import StepLog  # noqa: E402
from ift_scale.train.published import publish  # noqa: E402
from ift_scale.train.shape import ModelShape  # noqa: E402
from ift_scale.train.trackers import Trackers  # noqa: E402

_imported = time.monotonic()


def join(ranks: Ranks) -> torch.device:
    """Join the process group: NCCL on GPUs, gloo on CPUs."""
    if torch.cuda.is_available():
        local_rank = ranks.local_rank if torch.cuda.device_count() > 1 else 0
        os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed reads it; srun may show each task just its own device
        torch.cuda.set_device(local_rank)
        deepspeed.init_distributed("nccl")
        return torch.device("cuda", local_rank)
    # DeepSpeed would compile a shared-memory all-reduce here (half a minute, and a crash without a compiler).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    beside = ranks.local_size if ranks.local_size > 1 else ranks.world_size  # a launcher that does not say has one node
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // beside))
    deepspeed.init_distributed("gloo")
    return torch.device("cpu")


def settled(work: job.Job, ranks: Ranks, device: torch.device, control: Control) -> TrainConfig:
    """The settings without `auto` for what the memory model decides: the same on all ranks, by the smallest device and host."""
    on_gpu = device.type == "cuda"
    mine = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0, setting.host_memory(), ranks.local_size
    device_bytes, host_bytes, local_sizes = zip(*control.gather(mine), strict=True)
    shape = ModelShape.from_config(model_config(Path(work.model_path)))
    smallest = min(device_bytes) if on_gpu else None
    return setting.resolve(work.train, shape, smallest, ranks.world_size, max(local_sizes), min(host_bytes))


def train_arm(work: job.Job, arm: job.ArmJob, group: loop.Group, tokenizer: PromptTokenizer, events: job.Events) -> None:
    """Train and export one arm; its folder appears whole, on rank 0, or not at all."""
    events.emit("arm", name=arm.arm.name)
    leads = group.ranks.rank == 0
    with artifacts.atomic_folder(Path(arm.folder)) if leads else nullcontext() as temporary:
        tokens = data.load(Path(arm.tokens))
        rows = temporary / "metrics.jsonl" if temporary else None
        checkpoints = Checkpoints(arm, work.train, group.control, rows)

        def log(engine: Engine, num_steps: int) -> tuple[StepLog, Live]:
            meter = meter_of(work, tokens, group, engine.packed.pruned, events)
            trackers = Trackers(work.train.trackers if leads else [], Path(work.logs), events.note)
            trackers.start(arm.arm.name, {"model": work.model_path, "template": work.template, "train": work.train.model_dump()})
            steps = StepLog(rows, events, num_steps, meter, trackers, work.train.log_every, group.device)
            told = temporary, events, group.base_answers
            return steps, Live(arm.live, work.train.live, engine, group.control, num_steps, work.hidden_size, *told)

        with _kept_on_failure(rows, Path(work.logs) / f"{arm.arm.name}-metrics.jsonl"):
            engine, trained = loop.train(work, arm, tokens, group, log, checkpoints)
        started = time.monotonic()
        dtype = zero.precision_of(work.train, group.device)
        exported = publish(tokenizer, work.template, engine.packed.model.config)
        target = temporary / "model" if temporary else None
        peak = export(engine.packed.model, work.train.zero_stage == 3, target, Path(work.model_path), exported, dtype)
        trained.counts["export_peak_bytes"] = peak
        engine.release()
        if temporary:
            trained.seconds["export"] = time.monotonic() - started
            config = {"train": work.train.model_dump(), "template": work.template, "arm": arm.arm.model_dump()}
            artifacts.write_manifest(temporary, "train", arm.key, config, arm.inputs, trained.counts, trained.seconds)
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


def meter_of(work: job.Job, tokens: data.TokenizedSet, group: loop.Group, pruned: bool, events: job.Events) -> measures.Meter:
    """What counts an arm's steps; where MFU cannot be told, why is noted."""
    shape = ModelShape.from_config(model_config(Path(work.model_path)))
    peak, no_peak = measures.peak_of(work.train, group.device, zero.precision_of(work.train, group.device))
    if no_peak:
        events.note(no_peak)
    return measures.Meter(tokens, work.hidden_size, group.ranks.world_size, shape, pruned, work.train.share_prefix, peak)


def train_arms(work: job.Job, group: loop.Group, tokenizer: PromptTokenizer, events: job.Events) -> None:
    """Train the arms one after another. Ends the process with EXIT_STOPPED where the ranks shall stop, after saving."""
    for arm in work.arms:
        try:
            if group.control.stops():
                raise Interrupted(0)
            train_arm(work, arm, group, tokenizer, events)
        except Interrupted as stopped:
            events.emit("stopped", name=arm.arm.name, step=stopped.step)
            group.control.barrier()  # a launcher kills the other ranks when one has ended
            sys.stdout.flush()
            os._exit(EXIT_STOPPED)


@click.command()
@click.argument("job_path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--events", "events_path", type=click.Path(path_type=Path), help="File that the progress is appended to.")
@click.option("--supervisor", help="HOST:PID of the process whose end ends this one.")
def main(job_path: Path, events_path: Path | None, supervisor: str | None) -> None:
    """Train the arms of JOB_PATH as one rank of a group that a launcher has started."""
    ranks = distributed.from_environment()
    if ranks is None:
        raise click.UsageError("RANK and WORLD_SIZE are not set: start this module by a launcher, such as deepspeed or torchrun")
    if supervisor:
        distributed.end_with_supervisor(supervisor)
    work = job.read(job_path)
    events = job.Events(events_path if ranks.rank == 0 else None)
    try:
        device = join(ranks)
        events.emit("joined", imports=_imported - _started, join=time.monotonic() - _imported, world_size=ranks.world_size)
        tokenizer = PromptTokenizer(work.model_path)
        control = Control(Path(work.stop_file) if work.stop_file else None)
        work = work.model_copy(update={"train": settled(work, ranks, device, control)})
        group = loop.Group(ranks, device, models.read_weights(Path(work.model_path)), control)
        train_arms(work, group, tokenizer, events)
    except BaseException as error:
        traceback.print_exc()
        job.Events(events_path).emit("error", rank=ranks.rank, message=f"{type(error).__name__}: {error}")
        # A rank that merely raised would wait for the others in NCCL's or gloo's teardown; they are ended by the launcher.
        os._exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
