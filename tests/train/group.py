"""Ranks of a test: `run` starts a module once per rank; its main does its work within `joined`."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks, free_port
from ift_scale.ranks.rendezvous import meet
from ift_scale.train import process_group

_TIMEOUT = 600.0


def run(module: str, *arguments: Path, world_size: int, logs: Path) -> list[str]:
    """Run `module` on `world_size` gloo ranks of this machine. Returns what each rank printed.

    The output goes to files in `logs`: a full pipe would block its rank, and with it all others.
    """
    place = {
        **environment.local_launch(world_size, free_port()),
        "DS_ACCELERATOR": "cpu",
    }
    command = [sys.executable, "-m", module, *map(str, arguments)]
    files = [logs / f"rank-{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, file in enumerate(files):
        own = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with file.open("w") as log:
            ranks.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    with contextlib.suppress(subprocess.TimeoutExpired):
        for process in ranks:
            process.wait(timeout=_TIMEOUT)
    for process in ranks:
        process.kill()
    codes = [process.wait() for process in ranks]
    outputs = [file.read_text() for file in files]
    assert codes == [0] * world_size, "\n".join(text[-3000:] for text in outputs)
    return outputs


@contextlib.contextmanager
def joined() -> Iterator[tuple[Ranks, torch.device]]:
    """In a rank of `run`: the process group, with one thread per rank.

    The group is left at the end, as in a real launch.
    """
    ranks = environment.from_environment()
    assert ranks is not None
    device = process_group.join(meet(ranks, Path.cwd()))
    torch.set_num_threads(1)
    yield ranks, device
    dist.barrier()
    process_group.leave()
