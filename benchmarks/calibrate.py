"""Measures this machine's rates and writes them as a machine file.

    python -m benchmarks.calibrate OUT [--ranks 2]

As many processes as ranks share the cores, as in training, and measure simultaneously: matrix
products by their smallest dimension, causal attention by length, reading and writing by size, host
seconds per operation, and gloo's collectives. The result is the median of the repeats on the
slowest rank.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch.multiprocessing.spawn import spawn

from ift_scale.estimate.machine import Machine
from ift_scale.io.files import write_text
from ift_scale.io.machine import machine_name, package_versions
from ift_scale.train.launch.control import gather_json

_DIMENSIONS = (16, 64, 128, 256, 512, 1024)
_LENGTHS = (16, 64, 128, 256, 512, 1024)
_MOVED = (2**14, 2**18, 2**21, 2**24, 2**27)
_SMALL, _LARGE = 2**10, 2**26
_HEADS, _HEAD_DIM = 4, 64
_SIDE = 1024


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Stopwatch:
    """Measures the median time of `repeats` calls.

    The clock `cpu` counts this process's CPU seconds, user and system, over all threads: the time
    of a rank on cores of its own, even if the machine has other load. It excludes waiting.
    """

    clock: str = "wall"
    repeats: int = 7

    def now(self) -> float:
        return CLOCKS[self.clock]()

    def __call__(self, run: Callable[[], Any], least_seconds: float = 0.01) -> float:
        """Returns the seconds of one call; short calls are repeated. All ranks start together."""
        run()
        started = self.now()
        run()
        inner = max(1, int(least_seconds / max(self.now() - started, 1e-6)))
        if dist.is_initialized():  # every rank must call a collective equally often
            most = torch.tensor(inner)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            inner = int(most)
        times = []
        for _ in range(self.repeats):
            if dist.is_initialized():
                dist.barrier()
            started = self.now()
            for _ in range(inner):
                run()
            times.append((self.now() - started) / inner)
        return statistics.median(times)


def matrix_rate(smallest: int, timed: Stopwatch) -> float:
    """Returns FLOPs per second of float32 products with one dimension of `smallest`."""
    total = 0.0
    for m, n, k in ((_SIDE, _SIDE, smallest), (_SIDE, smallest, _SIDE), (smallest, _SIDE, _SIDE)):
        left, right = torch.randn(m, k), torch.randn(n, k)
        total += timed(lambda left=left, right=right: left @ right.t())  # type: ignore[misc]
    return 3 * 2 * _SIDE * _SIDE * smallest / total


def attention_rate(length: int, timed: Stopwatch) -> float:
    """Returns model FLOPs per second of causal attention, forward and backward."""
    q, k, v = (torch.randn(1, _HEADS, length, _HEAD_DIM, requires_grad=True) for _ in range(3))
    gradient = torch.randn(1, _HEADS, length, _HEAD_DIM)

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(gradient)

    return 3 * 4 * _HEADS * _HEAD_DIM * length * (length + 1) / 2 / timed(run)


def memory_rate(moved: int, timed: Stopwatch) -> float:
    """Returns bytes per second of a product of two vectors into new memory; `moved` in total."""
    left, right = torch.randn(moved // 12), torch.randn(moved // 12)
    return moved / timed(lambda: left * right)


def in_place_rate(moved: int, timed: Stopwatch) -> float:
    """Returns the same for a product in place."""
    left, right = torch.randn(moved // 12), torch.ones(moved // 12)
    return moved / timed(lambda: left.mul_(right))


def op_seconds(timed: Stopwatch, chain: int = 200) -> float:
    """Returns host seconds of an operation with autograd: half of a chain's passes."""
    start, factor = torch.ones(8, requires_grad=True), torch.ones(8)

    def run() -> None:
        value = start
        for _ in range(chain):
            value = value * factor
        value.sum().backward()

    return timed(run) / (2 * chain)


def links(timed: Stopwatch) -> dict[str, dict[str, float]]:
    """Returns bandwidth and latency of each collective, from a small and a large message."""
    ranks = dist.get_world_size()
    steps = ranks - 1
    found = {}
    for kind, (num_steps, share) in {
        "all_reduce": (2 * steps, 2 * steps / ranks),
        "all_gather": (steps, steps / ranks),
        "reduce_scatter": (steps, steps / ranks),
        "reduce": (steps, 1.0),
    }.items():
        small, large = (timed(_collective(kind, size // 4, ranks)) for size in (_SMALL, _LARGE))
        bandwidth = share * (_LARGE - _SMALL) / max(large - small, 1e-9)
        found[kind] = {
            "bandwidth": bandwidth,
            "latency": max(0.0, small - share * _SMALL / bandwidth) / num_steps,
        }
    return found


def _collective(kind: str, elements: int, ranks: int) -> Callable[[], Any]:
    whole, part = torch.zeros(elements), torch.zeros(elements // ranks)
    match kind:
        case "all_reduce":
            return lambda: dist.all_reduce(whole)
        case "all_gather":
            return lambda: dist.all_gather_into_tensor(whole, part)
        case "reduce_scatter":
            return lambda: dist.reduce_scatter_tensor(part, whole)
        case _:
            return lambda: dist.reduce(whole, 0)


def rates(timed: Stopwatch) -> dict[str, Any]:
    """Returns all rates; with several processes those of the slowest, and the group's links."""
    found: dict[str, Any] = {
        "matrix": {size: matrix_rate(size, timed) for size in _DIMENSIONS},
        "attention": {length: attention_rate(length, timed) for length in _LENGTHS},
        "memory": {moved: memory_rate(moved, timed) for moved in _MOVED},
        "in_place": {moved: in_place_rate(moved, timed) for moved in _MOVED},
        "op_seconds": op_seconds(timed),
    }
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return found
    found["collectives"] = links(timed)
    for curve in ("matrix", "attention", "memory", "in_place"):
        everyone = gather_json(list(found[curve].values()))
        found[curve] = dict(zip(found[curve], map(min, zip(*everyone, strict=True)), strict=True))
    return found | {"op_seconds": max(gather_json(found["op_seconds"]))}


def machine_of(found: dict[str, Any], ranks: int, clock: str) -> Machine:
    """Returns the measured rates as a machine whose devices are the ranks of this node."""
    about = f"{time.strftime('%Y-%m-%d')}, torch {package_versions()['torch']}, float32, gloo, "
    about += f"{clock} clock"
    return Machine(
        name=f"{machine_name()}, {ranks} rank{'s' if ranks > 1 else ''}",
        source=f"benchmarks.calibrate, {about}",
        measured=True,
        device="cpu",
        peak_flops=max(found["matrix"].values()),
        asynchronous=False,
        overlap=False,
        devices_per_node=ranks,
        inside=found["collectives"]["all_reduce"] if ranks > 1 else None,
        **found,
    )


def join(rank: int, ranks: int, folder: Path, threads: int) -> None:
    """Makes this process one of several that share the cores."""
    torch.set_num_threads(threads)
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder / 'ranks'}", rank=rank, world_size=ranks
        )


def _measure(
    rank: int, ranks: int, folder: Path, threads: int, timed: Stopwatch, out: Path
) -> None:
    join(rank, ranks, folder, threads)
    found = rates(timed)
    if rank == 0:
        write(machine_of(found, ranks, timed.clock), out)
    if ranks > 1:  # gloo's threads, left running, abort the process at its end
        dist.destroy_process_group()


def write(machine: Machine, out: Path) -> None:
    write_text(
        out,
        yaml.safe_dump(
            machine.model_dump(exclude_none=True, exclude_defaults=True), sort_keys=False, width=132
        ),
    )


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of each rank; its share of the cores when left out.",
)
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: on a machine with other load.",
)
def main(out: Path, ranks: int, threads: int | None, repeats: int, clock: str) -> None:
    """Measure this machine with RANKS processes and write OUT for `ift-scale plan --machine`."""
    threads = threads or max(1, len(os.sched_getaffinity(0)) // ranks)
    with tempfile.TemporaryDirectory() as folder:  # only this user can enter it
        arguments = ranks, Path(folder), threads, Stopwatch(clock, repeats), out
        spawn(_measure, arguments, nprocs=ranks)
    click.echo(f"{out}: written")


if __name__ == "__main__":
    main()
