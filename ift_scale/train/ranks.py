"""What every rank runs: join the group once, then train all arms of the job with it.

Started as `python -m ift_scale.train.ranks` by the deepspeed launcher, torchrun, or plain processes; RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT come from the launcher, the job file from IFT_SCALE_JOB.
"""

import os
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

_started = time.monotonic()

import deepspeed  # noqa: E402  (the imports are timed)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from ift_scale import artifacts, distributed  # noqa: E402
from ift_scale.distributed import Ranks  # noqa: E402
from ift_scale.inference.prompts import TEMPLATES  # noqa: E402
from ift_scale.inference.tokens import PromptTokenizer  # noqa: E402
from ift_scale.train import data, job, loop, zero  # noqa: E402
from ift_scale.train.export import export  # noqa: E402

_imported = time.monotonic()


def join(ranks: Ranks) -> torch.device:
    """Join the process group: NCCL on GPUs, gloo on CPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
        deepspeed.init_distributed("nccl")
        return torch.device("cuda", ranks.local_rank)
    # DeepSpeed would compile a shared-memory all-reduce here (half a minute, and a crash without a compiler).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.world_size))
    deepspeed.init_distributed("gloo")
    return torch.device("cpu")


def train_arm(
    work: job.Job, arm: job.ArmJob, ranks: Ranks, device: torch.device, tokenizer: PromptTokenizer, events: job.Events
) -> None:
    """Train and export one arm; its folder appears whole, on rank 0, or not at all."""
    events.emit("arm", name=arm.arm.name)
    folder = Path(arm.folder)
    with artifacts.atomic_folder(folder) if ranks.rank == 0 else nullcontext() as temporary:
        metrics = temporary / "metrics.jsonl" if temporary else None
        tokens = data.load(Path(arm.tokens))
        engine, trained = loop.train(work, tokens, arm.arm.seed, ranks, device, metrics, events)
        started = time.monotonic()
        dtype = zero.precision_of(work.train, device)
        tokenizer.tokenizer.chat_template = TEMPLATES[work.template]
        export(engine.module, work.train.zero_stage, temporary / "model" if temporary else None, tokenizer.tokenizer, dtype)
        loop.release(engine)
        if temporary:
            trained.seconds["export"] = time.monotonic() - started
            config = {"train": work.train.model_dump(), "template": work.template, "arm": arm.arm.model_dump()}
            artifacts.write_manifest(temporary, "train", arm.key, config, arm.inputs, trained.counts, trained.seconds)
    dist.barrier()
    events.emit("done", name=arm.arm.name, seconds=trained.seconds)


def main() -> None:
    distributed.end_with_supervisor()
    ranks = distributed.from_environment()
    assert ranks is not None, "start this module by a launcher"
    work = job.read(Path(os.environ[job.JOB]))
    events_path = os.environ.get(job.EVENTS)
    events = job.Events(Path(events_path) if events_path and ranks.rank == 0 else None)
    try:
        device = join(ranks)
        events.emit("joined", imports=_imported - _started, join=time.monotonic() - _imported, world_size=ranks.world_size)
        tokenizer = PromptTokenizer(work.model_path)
        for arm in work.arms:
            train_arm(work, arm, ranks, device, tokenizer, events)
    except BaseException as error:
        traceback.print_exc()
        job.Events(Path(events_path) if events_path else None).emit(
            "error", rank=ranks.rank, message=f"{type(error).__name__}: {error}"
        )
        # A rank that merely raised would wait for the others in NCCL's or gloo's teardown; they are ended by the launcher.
        os._exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
