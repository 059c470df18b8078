"""What a run tells of its steps: a row a step in metrics.jsonl, and events that the command line shows.

Values stay on the device until `train.log_every` steps are together; then they are reduced over the ranks and read once.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ift_scale.train import packing
from ift_scale.train.data import TokenizedSet
from ift_scale.train.engine import StepResult
from ift_scale.train.job import Events


class StepLog:
    """`path`: the rank that writes names it. `num_steps`: of the whole arm."""

    def __init__(self, path: Path | None, events: Events, num_steps: int, tokens: TokenizedSet, every: int, device: torch.device):
        self._file = path.open("a", encoding="utf-8") if path else None
        self._events, self._num_steps, self._tokens, self._every, self._device = events, num_steps, tokens, every, device
        self._losses: list[Tensor] = []
        self._rows: list[dict[str, Any]] = []
        self._mark = time.monotonic()

    def add(self, number: int, step: packing.Step, result: StepResult) -> None:
        """Step `number` (from 0) has ended."""
        now = time.monotonic()
        examples = [i for micro in step for place in micro for i in place]
        self._losses.append(result.loss)
        self._rows.append(
            {
                "step": number + 1,
                "grad_norm": result.grad_norm,
                "learning_rate": result.learning_rate,
                "examples": len(examples),
                "tokens": int(self._tokens.lengths[examples].sum()),
                "supervised_tokens": int(self._tokens.supervised_counts[examples].sum()),
                "seconds": now - self._mark,
                "applied": result.applied,
            }
        )
        self._mark = now
        if len(self._rows) == self._every or number + 1 == self._num_steps:
            self.flush()

    def pass_over(self, seconds: float) -> None:
        """Time since the last step that belongs to no step."""
        self._mark += seconds

    def flush(self) -> None:
        if not self._rows:
            return
        losses = torch.stack(self._losses).to(self._device)
        dist.all_reduce(losses)
        for row, loss in zip(self._rows, losses.tolist(), strict=True):
            norm = row["grad_norm"]
            row |= {"loss": loss, "grad_norm": None if norm is None else float(norm)}
            if self._file is not None:
                self._file.write(json.dumps(row) + "\n")
        if self._file is not None:
            self._file.flush()
        self._events.emit("step", of=self._num_steps, **self._rows[-1])
        self._losses, self._rows = [], []

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
