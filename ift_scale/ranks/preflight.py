"""Checks that the ranks of a launch can work together, before any of them loads a model.

In: what each rank reports about its node. Out: one message per problem, naming the hosts.
"""

import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.io.machine import package_versions
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks

_MIN_FREE_BYTES = 8 << 20
"""A disk with less free space counts as full."""


@dataclass(frozen=True)
class RankFacts:
    """What a rank reports about itself and its node."""

    rank: int
    host: str
    local_size: int
    devices: tuple[str, ...]
    """UUIDs of the GPUs that torch can use."""
    broken: int
    """Number of visible GPUs if torch can use none of them, else 0."""
    versions: dict[str, str]
    free: dict[str, int]
    """Free bytes in the folders that ranks write to."""
    job: str
    """Digest of the configuration."""


def facts_here(ranks: Ranks, job: str, output: Path) -> RankFacts:
    """Returns the facts of this process. `output` is the run's folder, which may not exist yet."""
    import torch

    parents = (output.absolute(), *output.absolute().parents)
    output = next(folder for folder in parents if folder.exists())
    devices = tuple(
        str(torch.cuda.get_device_properties(number).uuid)
        for number in range(torch.cuda.device_count())
    )
    folders = (Path(os.environ.get("TMPDIR", "/tmp")), output)
    return RankFacts(
        rank=ranks.rank,
        host=socket.gethostname(),
        local_size=ranks.local_size,
        devices=devices,
        broken=0 if devices else len(environment.visible_devices()),
        versions=package_versions(),
        free={str(folder): _free_bytes(folder) for folder in folders},
        job=job,
    )


def _free_bytes(folder: Path) -> int:
    """Returns the free bytes of a folder, 0 if it is not accessible."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def problems(ranks: Sequence[RankFacts]) -> list[str]:
    """Returns one message per reason why these ranks cannot work together."""
    return [*_version_problems(ranks), *_gpu_problems(ranks), *_disk_problems(ranks)]


def _version_problems(ranks: Sequence[RankFacts]) -> list[str]:
    messages = []
    for package in sorted({name for rank in ranks for name in rank.versions}):
        hosts = _hosts_by(
            (rank.versions.get(package, "not installed"), rank.host) for rank in ranks
        )
        if len(hosts) > 1:
            messages.append(
                f"{package} is not the same everywhere: {_listed(hosts)}. Install the same lock "
                "file on all nodes."
            )
    if len(jobs := _hosts_by((rank.job[:8], rank.host) for rank in ranks)) > 1:
        messages.append(
            f"the ranks read different configurations: {_listed(jobs)}. All nodes must see the "
            "same files."
        )
    return messages


def _gpu_problems(ranks: Sequence[RankFacts]) -> list[str]:
    messages = []
    by_host: dict[str, list[RankFacts]] = defaultdict(list)
    for rank in sorted(ranks, key=lambda rank: rank.host):
        by_host[rank.host].append(rank)
    broken = [host for host, local in by_host.items() if any(rank.broken for rank in local)]
    if broken:
        messages.append(
            f"torch cannot use the GPUs on {', '.join(broken)}. Check nvidia-smi on that node."
        )
    without = [
        host
        for host, local in by_host.items()
        if host not in broken and not any(rank.devices for rank in local)
    ]
    if without and len(without) < len(by_host):
        messages.append(
            f"no GPU is visible on {', '.join(without)}, but the other nodes have GPUs. Check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES there, or leave the node out."
        )
    for host, local in by_host.items():
        devices = {device for rank in local for device in rank.devices}
        if devices and len(devices) < local[0].local_size:
            messages.append(
                f"{host} has {local[0].local_size} ranks but {len(devices)} GPUs. Start one rank "
                "per GPU."
            )
    return messages


def _disk_problems(ranks: Sequence[RankFacts]) -> list[str]:
    folders = {(rank.host, *item) for rank in ranks for item in rank.free.items()}
    return [
        f"{host}: {folder} has {free >> 20} MiB free, but {_MIN_FREE_BYTES >> 20} MiB are needed. "
        "Free some space there, or set TMPDIR (scratch) or output_dir to another folder."
        for host, folder, free in sorted(folders)
        if free < _MIN_FREE_BYTES
    ]


def _hosts_by(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Groups (value, host) pairs: returns the sorted hosts of each value."""
    hosts: dict[str, set[str]] = defaultdict(set)
    for value, host in pairs:
        hosts[value].add(host)
    return {value: sorted(names) for value, names in sorted(hosts.items())}


def _listed(hosts: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in hosts.items())
