"""The number of ranks on a Ray cluster and the resources of each. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

from ift_scale.errors import EnvironmentProblem, IFTScaleError


class Node(NamedTuple):
    """A node's resources as Ray counts them."""

    name: str
    cpus: float
    gpus: float


class Layout(NamedTuple):
    """`num_ranks` ranks with `gpus_each` GPUs each, or one CPU each if 0."""

    num_ranks: int
    gpus_each: int

    def __str__(self) -> str:
        if self.gpus_each > 1:
            share = f"{self.gpus_each} GPUs"
        else:
            share = "one GPU" if self.gpus_each else "one CPU"
        return f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''} of {share}"


def layout_of(nodes: Sequence[Node], gpus_each: int, workers: int | None) -> Layout:
    """Returns `workers` ranks, or by default one per group of `gpus_each` GPUs of a node.

    On a cluster without GPUs, each of the `workers` ranks has one CPU. Raises EnvironmentProblem if
    the ranks do not fit, because Ray would wait for resources forever.
    """
    on_gpu = any(node.gpus for node in nodes)
    if not on_gpu and workers is None:
        raise IFTScaleError(
            "--ray: the cluster has no GPU. Set the number of engines with --ray-workers; each "
            "uses one CPU."
        )
    capacity = sum(
        int(min(node.gpus // gpus_each, node.cpus) if on_gpu else node.cpus) for node in nodes
    )
    num_ranks = workers or capacity or 1
    if num_ranks > capacity:
        available = "; ".join(f"{n.name}: {n.gpus:g} GPUs, {n.cpus:g} CPUs" for n in nodes)
        needs = f"a CPU and {gpus_each} GPUs of one node" if on_gpu else "a CPU"
        raise EnvironmentProblem(
            f"--ray: {num_ranks} ranks need {needs} each, but the cluster has room for {capacity} "
            f"({available}). Lower --ray-workers or tensor_parallel_size, or add nodes."
        )
    return Layout(num_ranks, gpus_each if on_gpu else 0)
