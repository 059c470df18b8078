"""Measurements of one arm between its optimizer steps, on the training ranks.

Two kinds exist: live knowledge (`train.live`) and the validation loss (`train.validation`). Each is
due before the first step, every few steps, and after the last. What they share is here: schedule,
time, file of rows, early stopping, and the forward passes without gradients. Training is not
affected: no gradient, random number or optimizer state changes, so an arm's weights are
bit-identical with and without measurements.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ift_scale.config.train import StoppingRule
from ift_scale.ranks import activity
from ift_scale.train.engine.deepspeed import TrainEngine
from ift_scale.train.launch.control import Control
from ift_scale.train.measurement import schedule


class Stopping(NamedTuple):
    """An early-stopping rule with the field of the rows that it watches.

    `rises`: higher values are better.
    """

    rule: StoppingRule
    field: str
    rises: bool


class PeriodicEvaluator:
    """The measurements of one kind.

    `every`: optimizer steps between measurements; 0 for none. `folder`: the arm's folder on rank 0,
    which writes `FILE`; None on other ranks. A resumed arm continues from this file, which its
    checkpoint contains.
    """

    NAME = ""
    """Name of the kind, for seconds and counts in the arm's manifest."""
    FILE = ""
    """JSON lines: one row per measurement. `seconds`: its duration; `share`: all measurements' part
    of the arm's time so far."""

    LOGGED: tuple[str, ...] = ()
    """Fields of the rows that the log of the arm's steps contains as well."""

    def __init__(
        self,
        every: int,
        stopping: Stopping | None,
        engine: TrainEngine,
        control: Control,
        num_steps: int,
        folder: Path | None,
    ):
        self._every, self._stopping, self._num_steps = every, stopping, num_steps
        self._engine, self._control, self._folder = engine, control, folder
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.should_stop = False
        """True once early stopping has ended the arm."""
        self._started = time.monotonic()

    def measure(self, step: int) -> dict[str, Any]:
        """Returns the measures of the model after `step` steps; every rank calls this."""
        raise NotImplementedError

    def record(self, row: Mapping[str, Any]) -> None:
        """Called on every rank with the newest row, after it is written."""

    def restore(self, rows: Sequence[dict[str, Any]]) -> None:
        """Continue after the given rows, which all ranks must agree on."""
        self.rows = list(rows)
        if self.rows:
            self.seconds = sum(row["seconds"] for row in self.rows)
            self._started -= self.seconds / self.rows[-1]["share"]
            self.should_stop = self._stops_early()

    def after(self, step: int) -> Mapping[str, Any]:
        """Measure if due after `step` steps. Returns the row; empty if nothing was measured.

        Every rank must call this; `should_stop` is the same on all. A measurement made before an
        interruption is not repeated.
        """
        if not schedule.due(step, self._every, self._num_steps):
            return {}
        if any(row["step"] == step for row in self.rows):
            return {}
        activity.begin(f"measuring {self.NAME}", slow=True)
        if self._engine.device.type == "cuda":
            # What is still queued belongs to the last step's time.
            torch.cuda.synchronize(self._engine.device)
        started = time.monotonic()
        row = {"step": step} | self.measure(step)
        seconds = time.monotonic() - started
        share = (self.seconds + seconds) / (time.monotonic() - self._started)
        row |= {"seconds": seconds, "share": share}
        self.rows.append(row)
        self.should_stop = self._stops_early()
        if self._folder is not None:
            with (self._folder / self.FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.seconds += seconds
        self.record(row)
        return row

    def _stops_early(self) -> bool:
        """True if the newest measurement ends the arm; False after its last step."""
        if self._stopping is None:
            return False
        rule, field, rises = self._stopping
        # A non-finite value is null in the file.
        values = [float("nan") if row[field] is None else row[field] for row in self.rows]
        since = schedule.since_best(values, rises, rule.least_improvement)
        # Rank 0 decides, because different machines may round differently.
        stops = self._control.gather(bool(since >= rule.patience))[0]
        return stops and self.rows[-1]["step"] < self._num_steps

    def counts(self) -> dict[str, float]:
        """Returns the counts for the arm's manifest; empty if nothing is measured."""
        if not self._every:
            return {}
        return {
            f"{self.NAME}_measurements": len(self.rows),
            f"{self.NAME}_every": self._every,
        }

    def times(self) -> dict[str, float]:
        """Returns seconds by part for the arm's manifest; no part belongs to a step."""
        return {self.NAME: self.seconds}

    @property
    def may_stop(self) -> bool:
        """True if early stopping watches these measurements."""
        return self._stopping is not None and self._every > 0


class Measurements:
    """All evaluators of an arm, which measure one after another."""

    def __init__(self, evaluators: Sequence[PeriodicEvaluator]):
        self.evaluators = evaluators

    @property
    def should_stop(self) -> bool:
        """True once an evaluator has ended the arm."""
        return any(evaluator.should_stop for evaluator in self.evaluators)

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds between steps by part, for the arm's manifest."""
        return {part: s for evaluator in self.evaluators for part, s in evaluator.times().items()}

    def after(self, step: int) -> dict[str, Any]:
        """Measure what is due after `step` steps. Returns the fields for the step's log."""
        rows = [(evaluator, evaluator.after(step)) for evaluator in self.evaluators]
        return {name: row[name] for kind, row in rows if row for name in kind.LOGGED}

    def counts(self) -> dict[str, float]:
        """Returns the counts for the arm's manifest."""
        counts: dict[str, float] = {}
        for evaluator in self.evaluators:
            counts |= evaluator.counts()
        if any(evaluator.may_stop for evaluator in self.evaluators):
            counts["stopped_early"] = int(self.should_stop)
        return counts
