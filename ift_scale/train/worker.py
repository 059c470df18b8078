"""One rank of a launch: joins the process group once, then trains all arms of the job with it.

A rank is either a process of its own (`python -m ift_scale.train.worker JOB`, started by a launcher
that `ift-scale train` supervises), or `ift-scale train` itself if srun, torchrun or deepspeed
started it once per rank. The settings are arguments rather than environment variables because the
deepspeed launcher does not forward unknown variables to other nodes.

torch, transformers and DeepSpeed are imported within functions: their imports take most of a rank's
start-up and are timed.
"""

import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import click

from ift_scale.errors import EXIT_STOPPED, IFTScaleError, Stopped, printable
from ift_scale.io.manifests import file_digest
from ift_scale.ranks import activity, environment
from ift_scale.ranks.environment import Ranks
from ift_scale.ranks.heartbeat import Heartbeat
from ift_scale.ranks.rendezvous import Rendezvous, meet
from ift_scale.ranks.stall import NETWORK
from ift_scale.train import job


def import_trainer() -> float:
    """Import everything heavy that a rank needs; returns the seconds."""
    started = time.monotonic()
    from ift_scale.train import arm, process_group  # noqa: F401

    return time.monotonic() - started


@click.command()
@click.argument("job_path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--events",
    "events_path",
    type=click.Path(path_type=Path),
    help="File to which progress events are appended.",
)
@click.option("--supervisor", help="HOST:PID of the process whose end ends this one.")
def main(job_path: Path, events_path: Path | None, supervisor: str | None) -> None:
    """Train the arms of JOB_PATH as one rank of a group started by a launcher."""
    ranks = environment.from_environment()
    if ranks is None:
        raise click.UsageError(
            "RANK and WORLD_SIZE are not set. Start this module with a launcher, such as"
            " deepspeed or torchrun."
        )
    if supervisor:
        environment.end_with_supervisor(supervisor)
    imports = import_trainer()
    events = job.Events(events_path, writes=ranks.is_rank_zero)
    try:
        rendezvous = meet(ranks, job_path.parent)
        rendezvous.check(file_digest(job_path), job_path.parent)
        run(job.read(job_path), rendezvous, events, imports)
    except job.Interrupted:
        sys.stdout.flush()
        os._exit(EXIT_STOPPED)
    except Exception as error:
        fail(error, ranks, events)
    from ift_scale.train import process_group

    process_group.leave()


def run(work: job.Job, rendezvous: Rendezvous, events: job.Events, imports: float) -> None:
    """Train the arms of `work` as one of the ranks of `rendezvous`.

    `imports`: seconds that the imports took, for the events. Raises Interrupted, on all ranks and
    after saving, if the ranks were asked to stop. A rank that fails ends its process, because an
    exception would make it wait for the others in the teardown of NCCL or gloo; the others follow
    within seconds.
    """
    from ift_scale.prompts.tokenizer import PromptTokenizer
    from ift_scale.train import process_group
    from ift_scale.train.arm import train_arms
    from ift_scale.train.launch.control import Control
    from ift_scale.train.loop import TrainContext
    from ift_scale.train.model.packed import read_weights

    ranks, heartbeat, stopped = rendezvous.ranks, None, None
    try:
        joining = time.monotonic()
        limit = work.train.hang_timeout
        activity.begin("joining the process group", NETWORK, slow=True)
        heartbeat = Heartbeat(rendezvous, events.failed, name=work.logs, limit=limit)
        device = process_group.join(rendezvous, limit)
        seconds = time.monotonic() - joining
        events.emit("joined", imports=imports, join=seconds, world_size=ranks.world_size)
        tokenizer = PromptTokenizer(work.model_path, work.trust_remote_code)
        stop_file = Path(work.stop_file) if work.stop_file else None
        control = Control(stop_file, process_group.collective_timeout(limit))
        # All ranks resolve `auto` to the same values, whatever devices they have.
        config = process_group.resolve_auto(work, ranks, device, control, events)
        work = work.model_copy(update={"train": config})
        context = TrainContext(ranks, device, read_weights(Path(work.model_path)), control)
        try:
            train_arms(work, context, tokenizer, events)
        except job.Interrupted as error:
            stopped = error
        activity.begin("leaving, after the last arm")
        # No rank leaves while another may still check that it is alive.
        control.barrier()
        heartbeat.close()
        control.close()
    except BaseException as error:
        fail(error, ranks, events, heartbeat)
    if stopped is not None:
        raise stopped


def fail(
    error: BaseException, ranks: Ranks, events: job.Events, heartbeat: Heartbeat | None = None
) -> NoReturn:
    """Report the error in the log, in the events and to the other ranks, then end the process."""
    text = str(error) if isinstance(error, IFTScaleError) else f"{type(error).__name__}: {error}"
    message = printable(text)
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


if __name__ == "__main__":
    main()
