"""Logs the steps of an arm: one row per step in metrics.jsonl and the trackers, and events.

Nothing waits for the device within a step: losses, norms and times stay on it for
`train.log_every` steps, and are then reduced over the ranks and read once.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ift_scale.train.data import packing
from ift_scale.train.job import Events
from ift_scale.train.monitor.throughput import Meter, peak_memory_gib
from ift_scale.train.monitor.trackers import Trackers

if TYPE_CHECKING:  # importing DeepSpeed takes seconds
    from ift_scale.train.engine.deepspeed import StepResult


class Clock:
    """Measures seconds between marks: with CUDA events on a GPU, else with the host's clock."""

    def __init__(self, device: torch.device):
        self._device = device

    def mark(self) -> Any:
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000


class StepLog:
    """The log of an arm's steps; `start` and `add` must surround every step, `finish` ends it.

    `path`: metrics.jsonl on rank 0, None on other ranks. `num_steps`: of the whole arm. `every`:
    `train.log_every`.
    """

    def __init__(
        self,
        path: Path | None,
        events: Events,
        num_steps: int,
        meter: Meter,
        trackers: Trackers,
        every: int,
        device: torch.device,
    ):
        self._file = path.open("a", encoding="utf-8") if path else None
        self._events, self._trackers = events, trackers
        self._num_steps, self._meter = num_steps, meter
        self._every, self._device, self._clock = every, device, Clock(device)
        self._losses: list[Tensor] = []
        self._divergences: list[dict[str, Tensor]] = []
        self._rows: list[dict[str, Any]] = []
        self._times: list[tuple[Any, Any]] = []
        self._start: Any = None
        self._began, self._num_added = time.monotonic(), 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        """Mark the start of a step. Work between steps, such as checkpoints, is not counted."""
        self._start = self._clock.mark()

    def add(self, number: int, step: packing.Step, result: "StepResult") -> None:
        """Add the result of step `number` (from 0), without reading it from the device."""
        self._times.append((self._start, self._clock.mark()))
        self._losses.append(result.loss)
        self._divergences.append(result.divergences)
        row = {
            "step": number + 1,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "applied": result.applied,
        }
        self._rows.append(row | self._meter.counts(step) if self._file is not None else row)
        self._num_added += 1

    def log_before(self, step: int, measured: Mapping[str, Any]) -> None:
        """Mark the start of the steps after `step`, and send what was measured before to the
        trackers. No row of this run belongs to that step.
        """
        self._events.emit("begun", step=step)
        if measured:
            self._trackers.log(step, measured)

    def finish(self, measured: Mapping[str, Any]) -> None:
        """Add what was measured after the newest step to its row, and write rows if it is time."""
        self._rows[-1] |= measured
        if len(self._rows) == self._every or self._rows[-1]["step"] == self._num_steps:
            self.flush()

    def flush(self) -> None:
        """Write the steps added since the last flush; every rank must call this."""
        if not self._rows:
            return
        losses = torch.stack(self._losses).to(self._device)
        dist.all_reduce(losses)  # the ranks' losses are parts of the step's loss
        divergences = {
            name: torch.stack([one[name] for one in self._divergences]).to(self._device)
            for name in self._divergences[0]
        }
        for parts in divergences.values():
            dist.all_reduce(parts)
        memory = torch.tensor(peak_memory_gib(self._device), device=self._device)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        if self._file is not None:
            for name, parts in divergences.items():  # waits for the device, as `_write` does
                for row, divergence in zip(self._rows, parts.tolist(), strict=True):
                    row[name] = _finite(divergence)
            self._write(losses.tolist(), float(memory))
        self._losses, self._rows, self._times, self._divergences = [], [], [], []

    def _write(self, losses: list[float], memory: float) -> None:
        assert self._file is not None
        rows = zip(self._rows, losses, self._times, strict=True)
        done = [
            self._finished(row, loss, self._clock.seconds(*times), memory)
            for row, loss, times in rows
        ]
        for row in done:
            self._file.write(json.dumps(row) + "\n")
            self._trackers.log(row["step"], row)
        self._file.flush()
        left = self._num_steps - done[-1]["step"]
        seconds_left = (time.monotonic() - self._began) / self._num_added * left
        self._events.emit("step", of=self._num_steps, seconds_left=seconds_left, **done[-1])

    def _finished(
        self, row: dict[str, Any], loss: float, seconds: float, memory: float
    ) -> dict[str, Any]:
        """Returns the row as it is written. Non-finite values are null: JSON has none."""
        norm = row["grad_norm"]
        values = {
            "loss": _finite(loss),
            "grad_norm": None if norm is None else _finite(float(norm)),
            "seconds": seconds,
        }
        return row | values | self._meter.rates(row, seconds) | {"peak_memory_gib": memory}

    def close(self) -> None:
        self.flush()
        self._trackers.close()
        if self._file is not None:
            self._file.close()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
