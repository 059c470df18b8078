"""The time of a collective among N devices, by ring and tree formulas (Thakur et al. 2005, doi
10.1177/1094342005051521).

S is the size of the whole message in bytes, B the bandwidth of a device's link in bytes per second,
and a the latency of one step in seconds. In a ring, all-gather and reduce-scatter take
(N - 1) a + (N - 1) / N * S / B, all-reduce twice that, and a reduction to one rank
(N - 1) a + S / B (a pipelined chain).

Over nodes of g devices, the bandwidth is the lower of a device's link and the node's network cards
together. Of the N - 1 steps, those between nodes have the network's latency (as in NCCL's own cost
model, src/graph/tuning.cc). All-reduce uses a tree over nodes if that is faster:
2 ((g - 1) a + log2(N / g) a_network) + 2 S / B.
"""

import math
from dataclasses import dataclass

from ift_scale.errors import DataError, Place
from ift_scale.estimate.machine import Kind, Machine


@dataclass(frozen=True)
class Collective:
    """`count` calls of one kind, each with a whole message of `size` bytes."""

    kind: Kind
    size: float
    count: float
    within: int = 0
    """Number of ranks, all on one node, of each group that makes the call; 0: all ranks."""


def seconds(call: Collective, machine: Machine, ranks: int) -> float:
    """Returns the seconds of all calls, 0 for a single rank.

    Raises DataError if there are more ranks than a machine without a network has devices.
    """
    ranks = call.within or ranks
    if ranks == 1 or call.count == 0:
        return 0.0
    link, nodes = machine.link(call.kind), math.ceil(ranks / machine.devices_per_node)
    bandwidth, latency = link.bandwidth, (ranks - 1) * link.latency
    tree = math.inf
    if nodes > 1:
        network = machine.between
        if network is None:
            problem = (
                f"is one node of {machine.devices_per_node} devices, too few for {ranks} ranks"
            )
            raise DataError(
                Place(f"machine {machine.name}", field="between"),
                problem,
                "Describe the link between its nodes, or use fewer ranks",
            )
        per_node = min(ranks, machine.devices_per_node)
        bandwidth = min(bandwidth, per_node * network.bandwidth)
        latency = (ranks - nodes) * link.latency + (nodes - 1) * network.latency
        hops = (per_node - 1) * link.latency + math.log2(nodes) * network.latency
        tree = 2 * hops + 2 * call.size / bandwidth
    share = (ranks - 1) / ranks * call.size / bandwidth
    match call.kind:
        case "all_reduce":
            once = min(2 * (latency + share), tree)
        case "reduce":
            once = latency + call.size / bandwidth
        case _:
            once = latency + share
    return call.count * once
