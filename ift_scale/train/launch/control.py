"""Stops all ranks after the same step, on a signal to any rank or on the supervisor's stop file.

The ranks agree through a gloo group on the host, so that they do not wait for a device.
"""

import json
import signal
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


@dataclass
class Control:
    """Collectives on the host. `stop_file`: created by the supervisor to make the ranks stop.

    `timeout`: limit for waiting for other ranks.
    """

    stop_file: Path | None
    timeout: timedelta
    group: Any = field(default=None, init=False)
    _signalled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self._before = {
            number: signal.signal(number, self._signal)
            for number in (signal.SIGTERM, signal.SIGUSR1)
        }

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def should_stop(self) -> bool:
        """True on all ranks if any of them was asked to stop; every rank must call this."""
        requested = self._signalled or (
            dist.get_rank() == 0 and self.stop_file is not None and self.stop_file.exists()
        )
        flag = torch.tensor([float(requested)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in rank order, on every rank.

        A value is what JSON can contain. torch's all_gather_object would unpickle, and so run, what
        arrives over a connection that has no password.
        """
        return gather_json(value, self.group)

    def barrier(self) -> None:
        dist.barrier(group=self.group)


def gather_json(value: Any, group: Any = None) -> list[Any]:
    """Returns the JSON values of all ranks of a gloo group; see `Control.gather`."""
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(own)]), group=group)
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(own)] = own
    texts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(texts, padded, group=group)
    return [
        json.loads(text[: int(size)].numpy().tobytes())
        for text, size in zip(texts, sizes, strict=True)
    ]
