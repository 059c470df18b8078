"""Stopping between steps: any rank's signal, or the supervisor's stop file, ends all ranks after the same step.

The ranks agree through a group of their own on the host (gloo), so that no device is waited for.
"""

import signal
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ift_scale.errors import Stopped


class Interrupted(Stopped):
    """The ranks have agreed to end after `step` steps of `arm`, which are saved."""

    def __init__(self, step: int, arm: str = ""):
        self.step, self.arm = step, arm
        super().__init__(f"stopped after step {step}")


@dataclass
class Control:
    """`stop_file`: made by whoever supervises the ranks when they shall save and end. `timeout` of waiting for each other."""

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
        """Leave signals to who had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def stops(self) -> bool:
        """Whether all ranks shall stop now; every rank must ask, and all get the same answer."""
        asked = self._signalled or (
            dist.get_rank() == 0 and self.stop_file is not None and self.stop_file.exists()
        )
        flag = torch.tensor([float(asked)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value, group=self.group)
        return found

    def barrier(self) -> None:
        dist.barrier(group=self.group)
